"""Datasets of the hub, or local ones, through the ``datasets`` library; DeepScaler-5K by the published preparation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from p2o.config.schema import HubData
from p2o.tasks.jsonl import to_problem
from p2o.tasks.problem_set import DataError, DataReport, Row, distinct
from p2o.types import Problem


def load(data: HubData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """``val_size`` and ``train_size`` rows, chosen as published.

    The rows are shuffled with ``data.seed``, the held-out ones split off by the same seed, and the training ones drawn
    from what is left by the same seed again. Unusable rows are left out afterwards, so that the choice is the
    published one.
    """
    rows = select(open_dataset(data), data)
    name = Path(data.dataset).name
    seen = distinct([*_rows(rows[1], data, name), *_rows(rows[0], data, name)], report)
    questions = set(rows[1][data.columns.question])
    return [p for p in seen if p.question not in questions], [p for p in seen if p.question in questions]


def select(dataset: Dataset, data: HubData) -> tuple[Dataset, Dataset]:
    """(training, held-out) rows: shuffle, split off ``val_size``, then draw ``train_size``, all by ``data.seed``."""
    wanted = (data.train_size or 1) + (data.val_size or 0)
    if data.val_size is None or wanted > len(dataset):
        raise DataError(
            f"{data.dataset} has {len(dataset)} rows, data.train_size={data.train_size} and data.val_size="
            f"{data.val_size} are wanted: set both to what it has"
        )
    split = dataset.shuffle(seed=data.seed).train_test_split(test_size=data.val_size, seed=data.seed)
    train = split["train"]
    if data.train_size is not None and data.train_size < len(train):
        train = train.train_test_split(train_size=data.train_size, seed=data.seed)["train"]
    return train, split["test"]


def open_dataset(data: HubData) -> Dataset:
    """The dataset ``data.dataset``: a folder that ``save_to_disk`` wrote, a local data file, or a hub id."""
    path = Path(data.dataset).expanduser()
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            dataset = load_from_disk(str(path))
        elif path.is_file():
            kind = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(path.suffix)
            if kind is None:
                raise DataError(f"data.dataset={path}: {path.suffix} is none of .jsonl, .json, .csv, .parquet")
            dataset = load_dataset(kind, data_files=str(path))
        else:
            dataset = load_dataset(data.dataset, data.subset)
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"data.dataset={data.dataset} cannot be opened ({type(error).__name__}: {error}): check the name and the "
            "network, or give a local file (data.dataset=<file.jsonl>, or data=jsonl data.path=<file.jsonl>)"
        ) from error
    if isinstance(dataset, DatasetDict):
        if data.split not in dataset:
            raise DataError(f"{data.dataset} has no split {data.split!r}: give data.split=<{' | '.join(dataset)}>")
        dataset = dataset[data.split]
    for key in ("question", "answer"):
        column = getattr(data.columns, key)
        if column not in dataset.column_names:
            raise DataError(
                f"{data.dataset} has no column {column!r} (data.columns.{key}); its columns are "
                f"{', '.join(dataset.column_names)}: give data.columns.{key}=<one of them>"
            )
    return dataset


def _rows(dataset: Dataset, data: HubData, name: str) -> Iterator[Row]:
    for i, row in enumerate(dataset):
        yield to_problem(row, data.columns, f"{name}:{i}", name)
