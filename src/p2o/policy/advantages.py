"""Group-relative advantages (equation 2).

Shapes: K rollouts of one group.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def is_live(rewards: Sequence[float]) -> bool:
    """Whether a group teaches anything: with equal rewards every advantage is zero (equation 3).

    Decided on the rewards themselves: a standard deviation of floats that should be zero may not be.
    """
    return any(reward != rewards[0] for reward in rewards)


def group_advantages(rewards: Sequence[float], *, normalise: bool, members: Sequence[Hashable] | None = None) -> Tensor:
    """Advantages [K] of a group's ``rewards``: minus the mean, divided by the standard deviation if ``normalise``.

    ``members`` names what each rollout was made under; then a rollout is compared with the mean of its own kind, and a
    kind with a single rollout, which would always be its own mean, with that of the group. The standard deviation
    (unbiased, as in the released code) is always the group's.
    """
    if not is_live(rewards):
        return torch.zeros(len(rewards))
    rewards_K = torch.tensor(rewards, dtype=torch.float64)
    baseline_K = rewards_K.mean().expand_as(rewards_K).clone()
    for kind in set(members or ()):
        own_K = torch.tensor([member == kind for member in members or ()])
        if own_K.sum() > 1:
            baseline_K[own_K] = rewards_K[own_K].mean()
    advantages_K = rewards_K - baseline_K
    if normalise:
        advantages_K /= rewards_K.std()
    return advantages_K.float()
