"""Figure 4's rates against values that can be computed by hand."""

from __future__ import annotations

from math import comb

import pytest

from p2o.algorithm.hard_set import HardSet, Record
from p2o.algorithm.module import Alternation
from p2o.algorithm.state import RunState
from p2o.reporting.epoch_summary import EpochSummary, compared, epoch_summary
from p2o.types import Assignment


def summary(*records: Record) -> EpochSummary:
    state = RunState(records={f"q{i}": record for i, record in enumerate(records)})
    return epoch_summary(state, Alternation(HardSet(), None, Assignment(), ""))


def test_plain_and_evolved_are_compared_on_the_same_questions_at_the_same_k() -> None:
    easy = Record(plain_correct=6, plain_count=6)
    first = Record(plain_correct=1, plain_count=2, templated_correct=2, templated_count=4)
    second = Record(plain_correct=0, plain_count=3, templated_correct=1, templated_count=3)
    rates = compared([easy, first, second])
    assert rates["evolved_k"] == 2
    assert rates["hard_plain_pass_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    assert rates["evolved_pass_at_1"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert rates["hard_plain_pass_at_k"] == pytest.approx((1 + 0) / 2)
    assert rates["evolved_pass_at_k"] == pytest.approx((1 - comb(2, 2) / comb(4, 2) + 1 - comb(2, 2) / comb(3, 2)) / 2)


def test_one_plain_rollout_estimates_no_pass_at_k() -> None:
    kept_one = Record(plain_correct=1, plain_count=1, templated_correct=1, templated_count=5)
    rates = compared([kept_one, Record(plain_count=1, templated_count=5)])
    assert rates == {
        "hard_plain_pass_at_1": 0.5,
        "hard_plain_pass_at_k": None,
        "evolved_pass_at_1": pytest.approx(0.1),
        "evolved_pass_at_k": 0.5,
        "evolved_k": 5,
    }


def test_a_question_with_one_templated_rollout_leaves_k_at_one() -> None:
    """The empty template may be drawn too, and its rollouts are plain ones."""
    kept_one = Record(plain_correct=1, plain_count=1, templated_correct=1, templated_count=5)
    rates = compared([kept_one, Record(plain_correct=1, plain_count=5, templated_count=1)])
    assert (rates["evolved_k"], rates["hard_plain_pass_at_k"]) == (1, pytest.approx(0.6))
    assert rates["evolved_pass_at_k"] == rates["evolved_pass_at_1"] == pytest.approx(0.1)


def test_templated_groups_without_a_plain_rollout_leave_the_evolved_side_alone() -> None:
    rates = compared([Record(templated_correct=3, templated_count=6), Record(plain_correct=6, plain_count=6)])
    assert (rates["hard_plain_pass_at_1"], rates["hard_plain_pass_at_k"]) == (None, None)
    assert (rates["evolved_pass_at_1"], rates["evolved_pass_at_k"], rates["evolved_k"]) == (0.5, 1.0, 6)


def test_plain_rates_of_all_questions() -> None:
    plain = [Record(plain_correct=6, plain_count=6), Record(plain_correct=0, plain_count=6)]
    row = summary(*plain)
    assert (row.plain_pass_at_1, row.plain_pass_at_k) == (0.5, 0.5)
    assert row.evolved_pass_at_1 is row.evolved_k is row.hard_plain_pass_at_1 is None
    mixed = summary(*plain, Record(plain_correct=1, plain_count=1, templated_count=5))
    assert mixed.plain_pass_at_1 == pytest.approx(2 / 3)
    assert mixed.plain_pass_at_k is None, "not all questions have six plain rollouts"
    assert summary().plain_pass_at_1 is None
