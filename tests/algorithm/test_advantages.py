"""Advantages by hand: what a group is compared with, what it is divided by, and when it teaches nothing."""

from __future__ import annotations

import math

import pytest
from groups import group, rollout

from p2o.algorithm.advantages import GroupAdvantages, Signal, group_advantages
from p2o.types import PLAIN, Outcome


def advantages(
    rewards: tuple[float, ...], templates: tuple[str, ...] | None = None, *, std: bool = True, baseline: str = "group"
) -> GroupAdvantages:
    names = templates or (PLAIN,) * len(rewards)
    rollouts = [rollout(r, name) for r, name in zip(rewards, names, strict=True)]
    return group_advantages(group(rollouts), scale_by_std=std, baseline=baseline)


def told(scored: GroupAdvantages) -> tuple[tuple[float, ...], Signal]:
    return scored.values, scored.signal


def test_divided_by_the_unbiased_standard_deviation() -> None:
    """One success of four: mean 1/4, squared deviations 9/16 + 3/16 = 3/4, divided by 3: std 1/2."""
    assert told(advantages((1, 0, 0, 0))) == ((1.5, -0.5, -0.5, -0.5), Signal.LIVE)


def test_mean_centred_only() -> None:
    assert advantages((1, 0, 0, 0), std=False).values == (0.75, -0.25, -0.25, -0.25)


def test_partial_rewards() -> None:
    """Mean 1/2, squared deviations 1/4 + 0 + 1/4, divided by 2: std 1/2."""
    assert advantages((1, 0.5, 0)).values == (1.0, 0.0, -1.0)
    assert advantages((0.25, 0.75)).values == pytest.approx((-math.sqrt(0.5), math.sqrt(0.5)))


def test_a_template_is_its_own_baseline_where_it_has_more_than_one_rollout() -> None:
    """a: mean 1/2; b: mean 0, its rollouts equal, nothing to learn; the only plain rollout meets the group's 2/5."""
    scored = advantages((1, 0, 0, 0, 1), ("a", "a", "b", "b", PLAIN), std=False, baseline="template")
    assert scored.values == pytest.approx((0.5, -0.5, 0.0, 0.0, 0.6))
    scaled = advantages((1, 0, 0, 0, 1), ("a", "a", "b", "b", PLAIN), baseline="template")
    std = math.sqrt((2 * 0.6**2 + 3 * 0.4**2) / 4)
    assert scaled.values == pytest.approx(tuple(v / std for v in scored.values)), "divided by the group's spread"


@pytest.mark.parametrize("baseline", ["group", "template"])
def test_equal_rewards_have_no_advantage(baseline: str) -> None:
    assert told(advantages((0, 0, 0), baseline=baseline)) == ((0.0,) * 3, Signal.ALL_FAIL)
    assert told(advantages((1, 1, 1), baseline=baseline)) == ((0.0,) * 3, Signal.ALL_PASS)
    assert advantages((1,), baseline=baseline).signal is Signal.ALL_PASS


def test_equal_rewards_are_seen_before_any_rounding() -> None:
    """The mean of three times 0.1 is not 0.1 in floating point: a division by the spread would make signal of it."""
    assert told(advantages((0.1, 0.1, 0.1), baseline="template")) == ((0.0,) * 3, Signal.ALL_FAIL)
    scored = advantages((0.1, 0.1, 0.1, 0.7), ("a", "a", "a", "b"), baseline="template")
    assert scored.values[:3] == (0.0, 0.0, 0.0)


def test_all_pass_is_a_matter_of_the_verdict_not_of_the_reward() -> None:
    half = [rollout(0.5, outcome=Outcome.CORRECT)] * 2
    assert group_advantages(group(half), scale_by_std=True, baseline="group").signal is Signal.ALL_PASS
    timeouts = [rollout(0, outcome=Outcome.TIMEOUT), rollout(0, outcome=Outcome.WRONG)]
    assert group_advantages(group(timeouts), scale_by_std=True, baseline="group").signal is Signal.ALL_FAIL


def test_rewards_that_differ_between_templates_only_give_no_contrast() -> None:
    scored = advantages((1, 1, 0, 0), ("a", "a", "b", "b"), baseline="template")
    assert told(scored) == ((0.0,) * 4, Signal.NO_CONTRAST)
    assert advantages((1, 1, 0, 0), ("a", "a", "b", "b")).signal is Signal.LIVE


def test_one_template_for_all_is_the_group_baseline() -> None:
    assert advantages((1, 0, 0), ("a",) * 3, baseline="template") == advantages((1, 0, 0), ("a",) * 3)
