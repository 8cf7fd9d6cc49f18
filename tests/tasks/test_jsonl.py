from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2o.config.schema import ColumnsConfig, JsonlData, RewardConfig
from p2o.tasks import DataError, ProblemSet, load_problems

DATA = Path(__file__).parents[2] / "../shared/data"
EXACT = RewardConfig(kind="exact", extract=["whole"])


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(start, start + count)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(content: bytes | list[Any], name: str = "mine.jsonl") -> str:
        path = tmp_path / name
        lines = content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode()
        path.write_bytes(lines)
        return str(path)

    return write


def load(path: str, reward: RewardConfig = EXACT, **changes: Any) -> ProblemSet:
    return load_problems(JsonlData(**{"prompt": "{question}", "path": path, "val_size": 2, **changes}), reward)


def test_rows_become_problems_split_by_the_seed_alone(write: Callable[..., str]) -> None:
    path = write(rows(20))
    first = load(path)
    assert (len(first.train), len(first.val)) == (18, 2)
    assert {p.question for p in first.train + first.val} == {row["problem"] for row in rows(20)}
    assert all(p.answer == str(2 * int(p.question.split()[2])) for p in first.train)
    assert all(p.id.startswith("mine-") and p.source == "mine" for p in first.train)
    assert load(path) == first
    assert load(path).fingerprint == first.fingerprint
    assert load(path, seed=43).fingerprint != first.fingerprint
    assert first.report.render() == "jsonl: 20 of 20 rows are usable"


def test_ids_do_not_depend_on_the_order_of_the_file(write: Callable[..., str]) -> None:
    ids = {p.question: p.id for part in [load(write(rows(9)))] for p in part.train + part.val}
    again = load(write(rows(9)[::-1]))
    assert {p.question: p.id for p in again.train + again.val} == ids


def test_own_columns_and_ids(write: Callable[..., str]) -> None:
    path = write([{"key": i, "q": f"{i}?", "a": i / 2, "source": "exam", "problem": "no"} for i in range(4)])
    problems = load(path, columns=ColumnsConfig(id="key", question="q", answer="a"))
    assert sorted((p.id, p.question, p.answer, p.source) for p in problems.train + problems.val) == [
        ("0", "0?", "0.0", "exam"),
        ("1", "1?", "0.5", "exam"),
        ("2", "2?", "1.0", "exam"),
        ("3", "3?", "1.5", "exam"),
    ]


def test_a_file_of_held_out_rows(write: Callable[..., str]) -> None:
    train, val = write(rows(10)), write(rows(6, start=8), "held-out.jsonl")
    problems = load(train, val_path=val, val_size=None)
    assert (len(problems.train), len(problems.val)) == (8, 6)  # the two in both files are held out
    assert problems.report.faults == {"question seen before": 2}
    assert len(load(train, val_path=val, val_size=3, train_size=4).train) == 4


def test_every_kind_of_bad_row_is_counted_with_an_example(write: Callable[..., str]) -> None:
    good = [json.dumps(row) for row in rows(5)]
    bad = [
        '{"problem": "cut off',
        "[1, 2]",
        json.dumps({"problem": 3, "answer": "3"}),
        json.dumps({"answer": "3"}),
        json.dumps({"problem": "null?", "answer": None}),
        json.dumps({"problem": "list?", "answer": ["3"]}),
        json.dumps({"problem": "true?", "answer": True}),
        json.dumps({"problem": "  ", "answer": "3"}),
        json.dumps({"problem": "What is  0 + 0?", "answer": "3"}),
        json.dumps({"problem": "half a pair \ud800", "answer": "3"}),
        json.dumps({"problem": "no answer", "answer": " "}),
        '{"problem": "' + "[" * 5000 + '"}' + "[" * 100_000,
    ]
    path = write(("\n".join([good[0], *bad, "", *good[1:]]) + "\n").encode() + b'{"problem": "\xff\xfe"}\n')
    problems = load(path)
    assert len(problems.train) + len(problems.val) == 5
    assert problems.report.rows == 18
    assert problems.report.faults == {
        "line that is not JSON": 3,
        "line that is not an object": 1,
        "question that is not text": 2,
        "answer that is neither text nor number": 3,
        "empty question": 1,
        "question seen before": 1,
        "text that is not Unicode": 1,
        "gold answer that the grader cannot read": 1,
    }
    text = problems.report.render()
    assert text.startswith("jsonl: 5 of 18 rows are usable\n")
    assert "2 left out, question that is not text; the first at mine.jsonl:4: problem=int 3" in text
    assert all(len(line) < 400 for line in text.splitlines())
    text.encode()
    with pytest.raises(DataError, match=r"data.strict=true(.|\n)*3 left out, line that is not JSON"):
        load(path, strict=True)


def test_ids_that_come_twice(write: Callable[..., str]) -> None:
    path = write([{**row, "id": i // 2} for i, row in enumerate(rows(8))])
    problems = load(path, columns=ColumnsConfig(id="id"))
    assert problems.report.faults == {"id seen before": 4}
    assert load(path, columns=ColumnsConfig(id="id"), strict=False).train == problems.train


def test_a_byte_order_mark_windows_line_ends_and_long_lines(write: Callable[..., str]) -> None:
    long = [{"problem": f"{i} " + "x" * 10_000_000, "answer": "1", "id": str(i)} for i in range(2)]
    content = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in rows(3) + long)
    start = time.process_time()
    problems = load(write(content))
    assert time.process_time() - start < 60.0, "it takes a fraction of a second"
    assert len(problems.train) + len(problems.val) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere.jsonl"}, "data.path=nowhere.jsonl is not a file: give data.path="),
        ({"val_path": "nowhere.jsonl"}, "data.val_path=nowhere.jsonl is not a file"),
        ({"columns": ColumnsConfig(question="ask")},
         r"line 1 of .*mine.jsonl has no column 'ask' \(data.columns.question\); its columns are problem, answer: "),
        ({"columns": ColumnsConfig(id="uid")}, r"no column 'uid' \(data.columns.id\)"),
        ({"val_size": None}, "data.val_size"),
        ({"val_size": 50}, "data.val_size=50, but .*mine.jsonl has only 9 usable rows"),
        ({"train_size": 8}, "data.train_size=8, but .*mine.jsonl has only 7 usable rows"),
        ({"val_size": 9}, "no usable training question"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_mend(
    write: Callable[..., str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(**{"path": write(rows(9)), **changes})


def test_an_empty_file_has_no_question(write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="val_size"):
        load(write(b""))


def test_a_reward_of_other_questions_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="reward=reasoning_gym cannot score data=jsonl"):
        load(write(rows(9)), RewardConfig(kind="reasoning_gym"))


@pytest.mark.skipif(not DATA.exists(), reason="the data sets are not here")
@pytest.mark.parametrize(
    ("name", "usable", "dropped"),
    [
        ("gsm8k_train", 7473, 0),
        ("gsm8k_test", 1319, 0),
        ("math500", 500, 0),
        ("aime24", 30, 0),
        pytest.param("deepscaler_train_part", 10_923, 9, marks=pytest.mark.slow),
    ],
)
def test_golds_of_real_data_are_read(name: str, usable: int, dropped: int) -> None:
    problems = load(str(DATA / f"{name}.jsonl"), RewardConfig(workers=2), columns=ColumnsConfig(id="id"))
    assert len(problems.train) + len(problems.val) == usable
    assert problems.report.rows == usable + dropped
    assert problems.report.faults.total() == dropped


@pytest.mark.skipif(not DATA.exists(), reason="the data sets are not here")
def test_a_selection_of_deepscaler() -> None:
    path = str(DATA / "deepscaler_train_part.jsonl")
    problems = load(path, RewardConfig(workers=2), columns=ColumnsConfig(id="id"), train_size=900, val_size=100)
    assert problems.report.faults.total() <= 5
    assert len(problems.train) + len(problems.val) == 1000 - problems.report.faults.total()
