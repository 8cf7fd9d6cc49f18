r"""Context distillation: sampled under the template, learnt on the plain question (equations 6 and 8).

    off         a templated rollout trains the templated question, as it was sampled
    replace     it trains the plain question x; its old log-probs are those under x (equation 6)
    importance  it trains x; its old log-probs are those under x̃, so that the PPO ratio is the importance ratio
    mask        replace, and a token with ρ = π_old(y_t | x, y_<t) / π_old(y_t | x̃, y_<t) outside [low, high] has no
                loss (equation 8; the released code's default)

The log-probs under x̃ are the engine's own, so none of the modes costs a forward pass more than ``replace``.

Shapes: N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.types import Group, Rollout


@dataclass(frozen=True, slots=True)
class Distillation:
    """One mode with the bounds of its mask."""

    kind: str
    low: float
    high: float

    def prompt(self, group: Group, rollout: Rollout) -> tuple[int, ...]:
        """The prompt that a rollout is trained under."""
        return rollout.prompt_tokens if self.kind == "off" else group.plain_prompt

    def old_logprobs(self, plain_old_N: Tensor, sampled_N: Tensor, templated_N: Tensor) -> Tensor:
        """What the PPO ratio is taken against [N].

        ``plain_old_N``: log-probs of the sampling policy under the prompt that is trained. ``sampled_N``: the engine's,
        under the prompt that was sampled. ``templated_N`` (bool): tokens of templated rollouts.
        """
        return torch.where(templated_N, sampled_N, plain_old_N) if self.kind == "importance" else plain_old_N

    def kept(self, plain_old_N: Tensor, sampled_N: Tensor, templated_N: Tensor) -> Tensor:
        """Tokens that have a loss, bool [N]; all of them unless the mode is ``mask``."""
        if self.kind != "mask":
            return torch.ones_like(templated_N)
        ratio_N = torch.exp(plain_old_N - sampled_N)
        return ~templated_N | ((ratio_N >= self.low) & (ratio_N <= self.high))


def taught(rollouts: Sequence[Rollout], advantages: Sequence[float], positive_only: bool) -> list[int]:
    """Indices of the rollouts that are trained on; ``positive_only`` drops templated ones with A < 0.

    Such a rollout would push down text that the plain policy would hardly write.
    """
    return [
        i
        for i, (rollout, advantage) in enumerate(zip(rollouts, advantages, strict=True))
        if rollout.plain or advantage >= 0 or not positive_only
    ]
