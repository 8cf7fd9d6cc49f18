"""Pass@k, intervals and paired tests against enumeration and hand-computed values."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from p2o.evaluation.protocol import Protocol, protocol_for
from p2o.evaluation.statistics import Resampling, compare, mean_interval
from p2o.reporting.epoch_summary import pass_at_k

HOW = Resampling(confidence=0.95, resamples=2000, seed=3)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_correct_answer(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        draws = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    p, n, k = 0.3, 6, 3
    mean = sum(
        p ** sum(answers) * (1 - p) ** (n - sum(answers)) * pass_at_k(n, sum(answers), k)
        for answers in product((0, 1), repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_refuses_what_it_cannot_estimate(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"Pass@{k}"):
        pass_at_k(n, c, k)


def test_an_interval_is_as_wide_as_the_normal_approximation_says() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, size=400)
    found = mean_interval([values], HOW)
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.method == "bootstrap"
    assert mean_interval([values], HOW) == found, "the seed decides"
    assert mean_interval([values], Resampling(0.95, 2000, 4)) != found


def test_sets_weigh_the_same_in_the_mean_whatever_their_sizes() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.binomial(1, 0.5, 50).astype(float), rng.binomial(1, 0.5, 5000).astype(float)
    found = mean_interval([small, large], HOW)
    assert found is not None
    half = 1.96 * np.sqrt(small.var() / 50 + large.var() / 5000) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_answers_are_alike_the_interval_is_the_exact_binomial_one(value: float) -> None:
    found = mean_interval([np.full(30, value)], HOW)
    assert found is not None
    edge = 0.025 ** (1 / 30)
    assert (found.low, found.high) == pytest.approx((0.0, 1 - edge) if value == 0 else (edge, 1.0))
    assert found.method == "exact binomial"
    assert mean_interval([np.full(30, 0.5)], HOW) is None
    assert mean_interval([np.full(30, value), np.full(10, value)], HOW) is None


def test_one_answer_a_question_is_compared_by_mcnemar() -> None:
    ours = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 5 + [0.0] * 5)
    theirs = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 5 + [0.0] * 5)
    found = compare(ours, theirs, HOW, single=True)
    assert (found.questions, found.better, found.worse, found.test) == (20, 8, 2, "exact McNemar")
    assert found.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert found.mean == pytest.approx(0.3)
    assert found.interval is not None
    assert found.interval.low < 0.3 < found.interval.high
    assert compare(theirs, ours, HOW, single=True).mean == pytest.approx(-0.3)


def test_pairing_counts_what_both_sides_share() -> None:
    """The same 30 points apart on every question: sure, however much the questions differ."""
    rates = np.linspace(0, 0.7, 40)
    noise = np.tile([0.01, -0.01], 20)
    found = compare(rates + 0.3 + noise, rates, HOW, single=False)
    assert found.interval is not None
    assert 0.29 < found.interval.low < found.interval.high < 0.31
    unpaired = mean_interval([rates], HOW)
    assert unpaired is not None
    assert unpaired.high - unpaired.low > 0.1


def test_several_answers_a_question_are_compared_by_swapping_sides() -> None:
    ours, theirs = np.array([0.5, 0.75, 1.0, 0.25, 0.5, 0.0]), np.array([0.25, 0.25, 0.5, 0.5, 0.0, 0.25])
    found = compare(ours, theirs, HOW, single=False)
    d = ours - theirs
    swaps = [abs(float(np.mean(d * signs))) for signs in product((1, -1), repeat=6)]
    assert found.test == "paired permutation"
    assert found.p_value == pytest.approx(np.mean(np.array(swaps) >= abs(d.mean()) - 1e-12))


def test_two_equal_sides_do_not_differ() -> None:
    same = np.array([1.0, 0.0, 1.0])
    found = compare(same, same, HOW, single=True)
    assert (found.mean, found.interval, found.p_value) == (0.0, None, 1.0)
    assert compare(same / 2, same / 2, HOW, single=False).p_value == 1.0


@pytest.mark.parametrize(
    ("size", "samples", "temperature", "expected"),
    [
        (30, None, None, Protocol(16, 0.6)),
        (99, None, None, Protocol(16, 0.6)),
        (100, None, None, Protocol(1, 0.0)),
        (500, 8, None, Protocol(8, 0.6)),
        (500, None, 1.0, Protocol(1, 1.0)),
        (30, 1, None, Protocol(1, 0.0)),
        (30, None, 0.0, Protocol(1, 0.0)),
        (30, None, 1.0, Protocol(16, 1.0)),
        (30, 4, 0.2, Protocol(4, 0.2)),
    ],
)
def test_the_protocol_is_the_papers_where_nothing_else_is_said(
    size: int, samples: int | None, temperature: float | None, expected: Protocol
) -> None:
    assert protocol_for(size, samples, temperature) == expected
