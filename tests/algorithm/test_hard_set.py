from __future__ import annotations

import pytest

from p2o.algorithm.hard_set import HardSet, Record, is_hard, mine
from p2o.config.schema import HardSetConfig
from p2o.types import Grade, Group, Outcome, Problem, Rollout


def rollout(correct: bool, template_id: str = "plain") -> Rollout:
    grade = Grade(Outcome.CORRECT if correct else Outcome.WRONG, float(correct))
    return Rollout("p", template_id, 0, (1,), (2,), (0.0,), "text", "stop", grade, 0)


def test_record_counts_plain_and_templated_apart() -> None:
    rollouts = (rollout(True), rollout(False), rollout(True, "t1"), rollout(True, "t2"), rollout(False, "t2"))
    record = Record.of(Group(Problem("p", "q", "a"), (1,), rollouts))
    assert record == Record(plain_correct=1, plain_count=2, templated_correct=2, templated_count=3)
    assert (record.correct, record.count) == (3, 5)


@pytest.mark.parametrize("rule", ["official", "plain_probe"])
@pytest.mark.parametrize(("correct", "hard"), [(0, True), (1, True), (2, False), (6, False)])
def test_all_plain_groups_follow_equation_5_under_both_rules(rule: str, correct: int, hard: bool) -> None:
    record = Record(plain_correct=correct, plain_count=6)
    assert is_hard(record, HardSetConfig(rule=rule, tau=2)) is hard


@pytest.mark.parametrize(
    ("plain", "templated", "official", "probe"),
    [
        (0, 5, False, True),  # solved under its templates only: the scaffold stays
        (0, 1, True, True),
        (1, 0, True, False),  # the plain one is correct: 1 * 6 >= 2 * 1
        (1, 5, False, False),
    ],
)
def test_one_plain_rollout_decides_under_the_probe(plain: int, templated: int, official: bool, probe: bool) -> None:
    record = Record(plain, 1, templated, 5)
    assert is_hard(record, HardSetConfig(rule="official", tau=2)) is official
    assert is_hard(record, HardSetConfig(rule="plain_probe", tau=2)) is probe


def test_probe_scales_the_threshold_to_the_plain_rollouts() -> None:
    config = HardSetConfig(rule="plain_probe", tau=4)  # 4 of 6, that is, 2 of 3
    assert is_hard(Record(1, 3, 3, 3), config)
    assert not is_hard(Record(2, 3, 0, 3), config)


def test_probe_without_plain_rollouts_is_the_published_rule() -> None:
    config = HardSetConfig(rule="plain_probe", tau=2)
    assert is_hard(Record(0, 0, 1, 6), config)
    assert not is_hard(Record(0, 0, 2, 6), config)


def test_mine_sorts_and_counts() -> None:
    records = {
        "z": Record(0, 1, 0, 5),  # nothing works
        "b": Record(0, 1, 4, 5),  # its template works
        "a": Record(0, 6),  # plain, nothing works
        "easy": Record(6, 6),
        "unseen": Record(),
    }
    config = HardSetConfig(rule="plain_probe", tau=2)
    assert mine(records, config) == HardSet(ids=("a", "b", "z"), all_fail=2)
    assert mine(dict(reversed(records.items())), config) == mine(records, config)
    assert mine({}, config) == HardSet()
