from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from p2o.algorithm.advantages import GroupAdvantages
from p2o.reporting.rollout_log import SCHEMA, RolloutLog, epoch_files, read_epoch

MakeScored = Callable[..., GroupAdvantages]


@pytest.fixture
def log(tmp_path: Path) -> RolloutLog:
    return RolloutLog(tmp_path / "rollouts")


def rows(log: RolloutLog) -> list[dict[str, Any]]:
    return [row for path in epoch_files(log.folder).values() for row in read_epoch(path)]


def keys(log: RolloutLog) -> list[tuple[int, int, str, int]]:
    return [(row["epoch"], row["round"], row["problem_id"], row["index"]) for row in rows(log)]


def fill(log: RolloutLog, make_scored: MakeScored) -> None:
    """Epochs 0 (closed) and 1 (closed) of two rounds each, epoch 2 with one round and still open."""
    for step, (epoch, round) in enumerate([(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)], start=1):
        log.append([make_scored(f"q{step}", "cw")], epoch=epoch, round=round, step=step)
        if round == 2:
            log.close_epoch(epoch)


def test_a_group_comes_back_from_parquet_as_it_was(log: RolloutLog, make_scored: MakeScored) -> None:
    scored = make_scored("q", "cutw", ("plain", "abc", "abc", "abc"))
    group = scored.group
    log.append([scored, make_scored("r", "w")], epoch=3, round=1, step=9)
    before = rows(log)
    log.close_epoch(3)
    assert [path.name for path in log.folder.iterdir()] == ["epoch-003.parquet"]
    after = rows(log)
    assert after == before
    for row, rollout, advantage in zip(after, group.rollouts, scored.values, strict=False):
        assert row["text"] == rollout.text
        assert row["outcome"] == rollout.grade.outcome
        assert row["extracted"] == rollout.grade.extracted
        assert row["template_id"] == rollout.template_id
        assert (row["reward"], row["advantage"]) == (rollout.reward, advantage)
        assert (row["prompt_tokens"], row["tokens"]) == (2, len(rollout.tokens))
        assert (row["finish_reason"], row["version"]) == (rollout.finish_reason, 7)
        assert (row["question"], row["answer"]) == (group.problem.question, "4")
        assert (row["epoch"], row["round"], row["step"]) == (3, 1, 9)
    assert after[4]["advantage"] == 0.0, "a group of one teaches nothing"
    assert pq.read_schema(log.folder / "epoch-003.parquet").equals(SCHEMA)


def test_closing_twice_changes_nothing(log: RolloutLog, make_scored: MakeScored) -> None:
    fill(log, make_scored)
    before = keys(log)
    log.close_epoch(1)
    log.close_epoch(5)
    assert keys(log) == before


@pytest.mark.parametrize(
    ("epoch", "round", "steps_kept"),
    [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (1, 2, 4), (2, 0, 4), (2, 1, 5), (3, 0, 5)],
)
def test_rewinding_and_doing_it_again_equals_no_interruption(
    log: RolloutLog, make_scored: MakeScored, epoch: int, round: int, steps_kept: int
) -> None:
    fill(log, make_scored)
    uninterrupted = keys(log)
    log.rewind(epoch, round)
    assert keys(log) == uninterrupted[: 2 * steps_kept]
    for step, (e, r) in list(enumerate([(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)], start=1))[steps_kept:]:
        log.append([make_scored(f"q{step}", "cw")], epoch=e, round=r, step=step)
        if r == 2:
            log.close_epoch(e)
    assert keys(log) == uninterrupted


def test_a_line_cut_short_by_a_kill_is_dropped(log: RolloutLog, make_scored: MakeScored) -> None:
    log.append([make_scored("q1", "cw")], epoch=0, round=1, step=1)
    path = log.folder / "epoch-000.jsonl"
    whole = path.read_bytes()
    log.append([make_scored("q2", "cw")], epoch=0, round=2, step=2)
    path.write_bytes(path.read_bytes()[:-20])
    log.rewind(0, 1)
    assert path.read_bytes() == whole


def test_a_kill_between_parquet_and_removal_of_the_lines_loses_nothing(
    log: RolloutLog, make_scored: MakeScored
) -> None:
    log.append([make_scored("q1", "cw")], epoch=0, round=1, step=1)
    lines = (log.folder / "epoch-000.jsonl").read_bytes()
    log.close_epoch(0)
    (log.folder / "epoch-000.jsonl").write_bytes(lines)
    assert keys(log) == [(0, 1, "q1", 0), (0, 1, "q1", 1)]
    log.rewind(1, 0)
    assert keys(log) == [(0, 1, "q1", 0), (0, 1, "q1", 1)]
    assert not (log.folder / "epoch-000.jsonl").exists()
