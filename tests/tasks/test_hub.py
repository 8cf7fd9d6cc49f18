from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from p2o.config.schema import ColumnsConfig, HubData, RewardConfig
from p2o.tasks import DataError, ProblemSet, load_problems
from p2o.tasks.hub_data import open_dataset, select

EXACT = RewardConfig(kind="exact", extract=["whole"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def questions() -> datasets.Dataset:
    rows = [{"problem": f"question {i}", "answer": str(i)} for i in range(1000)]
    return datasets.Dataset.from_list(rows)


def config(dataset: Path | str, **changes: Any) -> HubData:
    return HubData(**{"prompt": "{question}", "dataset": str(dataset), "val_size": 50, "train_size": 500, **changes})


def load(dataset: Path | str, **changes: Any) -> ProblemSet:
    return load_problems(config(dataset, **changes), EXACT)


def published(rows: int, val: int, train: int, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers of the published preparation, from NumPy's permutations alone."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    split = np.random.default_rng(seed).permutation(rows)
    held_out, rest = shuffled[split[:val]], shuffled[split[val:]]
    again = np.random.default_rng(seed).permutation(len(rest))
    return rest[again[:train]].tolist(), held_out.tolist()


def test_the_published_selection(questions: datasets.Dataset) -> None:
    train, val = select(questions, config("", seed=42))
    expected_train, expected_val = published(1000, 50, 500, 42)
    assert [int(answer) for answer in train["answer"]] == expected_train
    assert [int(answer) for answer in val["answer"]] == expected_val


def test_without_the_first_shuffle_and_without_a_second_split(questions: datasets.Dataset) -> None:
    train, val = select(questions, config("", shuffle=False, train_size=None))
    split = np.random.default_rng(42).permutation(1000)
    assert [int(answer) for answer in val["answer"]] == split[:50].tolist()
    assert sorted(int(answer) for answer in train["answer"]) == sorted(split[50:].tolist())


def test_a_folder_of_datasets_own_and_a_file_give_the_same(questions: datasets.Dataset, tmp_path: Path) -> None:
    questions.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": questions}).save_to_disk(tmp_path / "splits")
    questions.to_parquet(tmp_path / "rows.parquet")
    questions.to_json(tmp_path / "rows.jsonl")
    parts = [load(tmp_path / name) for name in ("saved", "splits", "rows.parquet", "rows.jsonl")]
    for problems in parts:
        assert [p.question for p in problems.train] == [p.question for p in parts[0].train]
        assert [p.question for p in problems.val] == [p.question for p in parts[0].val]
    expected_train, expected_val = published(1000, 50, 500, 42)
    assert [int(p.answer) for p in parts[0].train] == expected_train
    assert [int(p.answer) for p in parts[0].val] == expected_val
    assert parts[0].fingerprint == load(tmp_path / "saved").fingerprint


def test_unusable_rows_are_left_out_after_the_selection(tmp_path: Path) -> None:
    rows = [
        {"problem": f"question {i // 2 if i < 20 else i}", "answer": str(i) if i % 100 else " "} for i in range(1000)
    ]
    random.Random(0).shuffle(rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    problems = load(tmp_path / "saved", train_size=900, val_size=100)
    assert problems.report.rows == 1000
    assert problems.report.faults["gold answer that the grader cannot read"] in (9, 10)
    assert problems.report.faults["question seen before"] in (9, 10)
    assert len(problems.train) + len(problems.val) == 1000 - problems.report.faults.total()
    assert not {p.question for p in problems.train} & {p.question for p in problems.val}


def test_columns_by_name(tmp_path: Path) -> None:
    rows = [{"uid": f"q-{i}", "ask": f"{i}?", "final": i} for i in range(20)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    columns = ColumnsConfig(id="uid", question="ask", answer="final")
    problems = load(tmp_path / "rows.json", columns=columns, train_size=None, val_size=5)
    assert {(p.id, p.question, p.answer) for p in problems.train + problems.val} == {
        (f"q-{i}", f"{i}?", str(i)) for i in range(20)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "has no split 'test': give data.split=<train>"),
        (
            {"columns": ColumnsConfig(answer="final")},
            r"has no column 'final' \(data.columns.answer\); its columns are pro",
        ),
        ({"columns": ColumnsConfig(id="uid")}, r"has no column 'uid' \(data.columns.id\)"),
        ({"train_size": 1000}, "has 1000 rows, but data.val_size=50 and data.train_size=1000 are asked for"),
        ({"val_size": None}, "set data.val_size"),
    ],
)
def test_what_is_missing_is_named(
    questions: datasets.Dataset, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    datasets.DatasetDict({"train": questions}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "splits", **changes)


def test_what_cannot_be_opened_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.dataset=nobody/nothing cannot be opened .*data=jsonl"):
        open_dataset(config("nobody/nothing"))
    (tmp_path / "broken.jsonl").write_text('{"problem": "1", "answer"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl cannot be opened"):
        open_dataset(config(tmp_path / "broken.jsonl"))
    (tmp_path / "rows.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"\.txt is none of \.jsonl, \.json, \.csv, \.parquet"):
        open_dataset(config(tmp_path / "rows.txt"))
