"""Datasets from the hub or local, through the ``datasets`` library; DeepScaler-5K by the published preparation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from p2o.config.schema import HubData
from p2o.hub import prefer_cache_without_hub
from p2o.tasks.jsonl import check_columns, to_problem
from p2o.tasks.problem_set import DataError, DataReport, Row, Sieve
from p2o.types import Problem

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load(data: HubData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) rows, chosen by :func:`select`.

    Unusable rows are left out after the choice, so that it stays the published one; training questions that
    are also held out are among them.
    """
    train, val = select(open_dataset(data), data)
    sieve = Sieve(report)
    held_out = list(sieve(_rows(val, data, "held-out")))
    return list(sieve(_rows(train, data, "training"))), held_out


def select(dataset: Dataset, data: HubData) -> tuple[Dataset, Dataset]:
    """(training, held-out) rows by ``data.seed``, in the steps of the published preparation.

    Shuffle (if ``data.shuffle``); split off ``val_size`` rows as a test set; from the rest, split off ``train_size``
    rows as a test set again, and train on those. The second split takes the *test* side, as the first does: the
    training side would be another selection, though just as random.
    """
    if not data.val_size or data.val_size + (data.train_size or 1) > len(dataset):
        raise DataError(
            f"{data.dataset} has {len(dataset)} rows, but data.val_size={data.val_size} and data.train_size="
            f"{data.train_size} are asked for: set data.val_size, and make both fit"
        )
    if data.shuffle:
        dataset = dataset.shuffle(seed=data.seed)
    split = dataset.train_test_split(test_size=data.val_size, seed=data.seed)
    train = split["train"]
    if data.train_size is not None and data.train_size < len(train):
        train = train.train_test_split(test_size=data.train_size, seed=data.seed)["test"]
    return train, split["test"]


def open_dataset(data: HubData) -> Dataset:
    """The split ``data.split`` of a hub id, a local data file, or a folder that ``save_to_disk`` wrote."""
    try:
        dataset = _open(data)
    except (DatasetsError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"data.dataset={data.dataset} cannot be opened ({type(error).__name__}: {str(error)[:300]}): check the "
            "name and the network, or use a file: data=jsonl data.path=<file.jsonl>"
        ) from error
    if isinstance(dataset, DatasetDict):
        if data.split not in dataset:
            raise DataError(f"{data.dataset} has no split {data.split!r}: give data.split=<{' | '.join(dataset)}>")
        dataset = dataset[data.split]
    check_columns(dataset.column_names, data.columns, f"data.dataset={data.dataset}")
    return dataset


def _open(data: HubData) -> Dataset | DatasetDict:
    path = Path(data.dataset).expanduser()
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return load_from_disk(str(path))
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise DataError(f"data.dataset={path}: {path.suffix} is none of {', '.join(_FORMATS)}")
        return load_dataset(_FORMATS[path.suffix], data_files={data.split: str(path)})
    prefer_cache_without_hub()
    return load_dataset(data.dataset, data.subset)


def _rows(dataset: Dataset, data: HubData, part: str) -> Iterator[Row]:
    source = Path(data.dataset).name
    for index, row in enumerate(dataset):
        yield to_problem(row, data.columns, f"{part} row {index} of {source}", source)
