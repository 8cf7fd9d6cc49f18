"""Group advantages (equation 2 of arXiv 2603.21877): how much better a rollout did than those it is compared with.

A group whose rewards are all equal has no gradient (equation 3). Equality is checked before any division, so no
epsilon can hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

from p2o.types import Group


class Signal(StrEnum):
    """What a group can teach."""

    LIVE = "live"
    ALL_FAIL = "all_fail"
    """Equal rewards, not all correct."""
    ALL_PASS = "all_pass"
    """Equal rewards, all correct."""
    NO_CONTRAST = "no_contrast"
    """Rewards differ between templates only, and each template is its own baseline."""


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """A group with one advantage per rollout, in the order of its rollouts; all are zero unless the group is live."""

    group: Group
    values: tuple[float, ...]
    signal: Signal


def group_advantages(group: Group, *, scale_by_std: bool, baseline: str) -> GroupAdvantages:
    """A_k = r_k − mean, divided by the group's standard deviation (unbiased, as in the released code) if asked.

    ``baseline="group"``: the mean is the group's. ``"template"``: that of the rollouts under the same template; a
    template's only rollout would be its own mean, so it is compared with the group.
    """
    rewards = group.rewards
    dead = (0.0,) * len(rewards)
    if _equal(rewards):
        solved = all(rollout.correct for rollout in group.rollouts)
        return GroupAdvantages(group, dead, Signal.ALL_PASS if solved else Signal.ALL_FAIL)
    peers: list[Sequence[float]] = [rewards] * len(rewards)
    if baseline == "template":
        of_template: dict[str, list[float]] = {}
        for rollout in group.rollouts:
            of_template.setdefault(rollout.template_id, []).append(rollout.reward)
        peers = [p if len(p := of_template[r.template_id]) > 1 else rewards for r in group.rollouts]
    spread = stdev(rewards) if scale_by_std else 1.0
    values = tuple(0.0 if _equal(p) else (r - fmean(p)) / spread for r, p in zip(rewards, peers, strict=True))
    if not any(values):
        return GroupAdvantages(group, dead, Signal.NO_CONTRAST)
    return GroupAdvantages(group, values, Signal.LIVE)


def _equal(rewards: Sequence[float]) -> bool:
    return all(r == rewards[0] for r in rewards)
