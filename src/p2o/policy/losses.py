r"""The clipped policy-gradient loss, and the presets that its parts make up.

For a token with log-probs new and old, advantage A and ratio ρ = exp(new − old):

    ℓ = −min(ρ A, clip(ρ, 1 − low, 1 + high) A),   and for A < 0 at most −c A (dual clip c)

The loss of an optimizer step is Σ w ℓ over its tokens, divided by one denominator for the whole step, however the step
is cut into micro-batches:

    preset    advantage          denominator
    grpo      divided by std     tokens (the released code's token mean)
    dapo      divided by std     tokens; meant to be used with clip_high above clip_low
    dr_grpo   mean-centred only  sequences · max_new_tokens, a constant that does not reward short wrong answers

Groups with equal rewards take no part, in the numerator or in the denominator.

Shapes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossPreset:
    """``normalise``: divide advantages by the group's standard deviation. ``per_token``: the denominator is the number
    of tokens, else sequences times the greatest length."""

    normalise: bool
    per_token: bool

    def denominator(self, tokens: float, sequences: int, max_new_tokens: int) -> float:
        """What the summed loss of an optimizer step is divided by."""
        return tokens if self.per_token else float(sequences * max_new_tokens)


PRESETS = {
    "grpo": LossPreset(normalise=True, per_token=True),
    "dapo": LossPreset(normalise=True, per_token=True),
    "dr_grpo": LossPreset(normalise=False, per_token=False),
}


def token_losses(
    new_N: Tensor, old_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Tensor, Tensor]:
    """Loss [N] of each token, and whether the clip decided it (bool [N]). ``dual_clip=0`` turns the dual clip off."""
    ratio_N = torch.exp(new_N - old_N)
    unclipped_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    losses_N = torch.maximum(unclipped_N, clipped_N)
    by_clip_N = clipped_N > unclipped_N
    if dual_clip > 0:
        bound_N = -dual_clip * advantages_N
        by_dual_N = (advantages_N < 0) & (losses_N > bound_N)
        losses_N = torch.where(by_dual_N, bound_N, losses_N)
        by_clip_N = by_clip_N | by_dual_N
    return losses_N, by_clip_N
