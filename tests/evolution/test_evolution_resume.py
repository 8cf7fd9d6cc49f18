"""A killed evolution goes on where it was, at no further cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from word_task import HARD, Task, WordReflector, run

from p2o.evolution.journal import JournalError
from p2o.types import Request, Rollout

SHORT = {"metric_calls": 110}


@pytest.mark.parametrize("where", ["evaluate", "reflect"])
def test_killed_at_any_call_it_ends_in_the_same_result_and_repeats_none(tmp_path: Path, where: str) -> None:
    whole, task, reflector = run(tmp_path / "whole", fields=SHORT)
    calls = len(task.calls) if where == "evaluate" else len(reflector.calls)
    for n in range(1, calls + 1):
        first_task, first_reflector = Task(), WordReflector()
        (first_task if where == "evaluate" else first_reflector).dies_at = n
        run_dir = tmp_path / f"{where}-{n}"
        with pytest.raises(RuntimeError, match=f"killed in {where}"):
            run(run_dir, first_task, first_reflector, fields=SHORT)
        again, rest, _ = run(run_dir, fields=SHORT)
        assert again == whole
        done = first_task.calls[:-1] if where == "evaluate" else first_task.calls
        assert done + rest.calls == task.calls
        assert rest.ledger.to_json() == task.ledger.to_json()


def test_a_reflector_that_never_answers_twice_alike_is_asked_once(tmp_path: Path) -> None:
    run(tmp_path, Task(), WordReflector(random.Random(1), deterministic=False), fields=SHORT)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(0, len(lines), 3):
        run_dir = tmp_path / str(kept)
        run_dir.mkdir()
        (run_dir / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        other = WordReflector(random.Random(kept + 2), deterministic=False)
        first, _, _ = run(run_dir, Task(), other, fields=SHORT)
        again, rest, silent = run(run_dir, Task(), WordReflector(random.Random(-1), deterministic=False), fields=SHORT)
        assert again == first
        assert not rest.calls
        assert not silent.calls


def test_a_torn_last_line_is_dropped_wherever_it_tears(tmp_path: Path) -> None:
    whole, task, _ = run(tmp_path, fields=SHORT)
    journal = (tmp_path / "journal.jsonl").read_bytes()
    for size in random.Random(0).sample(range(len(journal)), 12):
        run_dir = tmp_path / str(size)
        run_dir.mkdir()
        (run_dir / "journal.jsonl").write_bytes(journal[:size])
        again, rest, _ = run(run_dir, fields=SHORT)
        assert again == whole
        assert (run_dir / "journal.jsonl").read_bytes() == journal
        assert rest.calls == task.calls[len(task.calls) - len(rest.calls) :]


def test_a_finished_evolution_costs_nothing_and_books_the_same(tmp_path: Path) -> None:
    whole, task, _ = run(tmp_path)
    again, rest, reflector = run(tmp_path)
    assert again == whole
    assert not rest.calls
    assert not reflector.calls
    assert rest.ledger.to_json() == task.ledger.to_json()


@pytest.mark.parametrize(
    "kwargs",
    [{"hard": HARD[1:]}, {"fields": {"minibatch": 2}}, {"epoch": 2}, {"warm_start": ["please add it"]}],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_a_journal_of_another_evolution_is_refused_by_name(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(JournalError, match=rf"{tmp_path}/journal.jsonl.*delete the folder {tmp_path}"):
        run(tmp_path, **kwargs)


def test_another_policy_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, Task(dies_at=4))
    with pytest.raises(JournalError, match=f"policy version 3, continued under 4: delete the folder {tmp_path}"):
        run(tmp_path, Task(version=4))


def test_a_damaged_line_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"reward": 0.0', b'"reward": 1.0', 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"journal\.jsonl: line 3 is damaged"):
        run(tmp_path)


def test_gepa_s_pickle_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "gepa_state.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # would fail, or worse, if it were loaded
    evolution, _, _ = run(tmp_path)
    assert evolution.stop_reason == "dev_solved"
    assert not (tmp_path / "gepa_state.bin").exists()


def test_no_page_is_left_that_loads_a_script_from_elsewhere(tmp_path: Path) -> None:
    run(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"<script" in path.read_bytes()] == []


def test_an_evaluator_that_loses_a_rollout_is_told_so(tmp_path: Path) -> None:
    class Loses(Task):
        def __call__(self, requests: Sequence[Request]) -> list[Rollout]:
            return super().__call__(requests)[1:]

    with pytest.raises(RuntimeError, match="evaluate returned 11 rollouts"):
        run(tmp_path, Loses())
