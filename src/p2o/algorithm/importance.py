"""Truncated importance sampling: a correction for an engine that samples from slightly different probabilities.

The engine's kernels, and perhaps its precision, differ from the trainer's, so tokens are drawn from π_engine while the
gradient is that of π_trainer. Each token's loss is weighted by

    token      w_t = min(π_trainer(y_t) / π_engine(y_t), cap)
    sequence   w   = min(π_trainer(y) / π_engine(y), cap), the same for every token of the completion
    off        1

both under the prompt that the tokens were sampled under, before the update. A templated rollout that is trained under
the plain question keeps weight 1: its two log-probs differ by the template, which :mod:`p2o.algorithm.distillation`
handles, and the trainer's under the template would cost a forward pass.

Source: truncated importance sampling (Ionides, 2008), applied to the gap between an engine and a trainer.

Shapes: N tokens of a micro-batch, which holds whole completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.algorithm.losses import MAX_LOG_RATIO

KINDS = ("off", "token", "sequence")


@dataclass(frozen=True, slots=True)
class Truncation:
    """``rollout.importance`` and ``rollout.importance_cap``."""

    kind: str = "off"
    cap: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rollout.importance={self.kind}: choose one of {', '.join(KINDS)}")
        if self.cap < 1:
            raise ValueError(f"rollout.importance_cap={self.cap} must be at least 1")


OFF = Truncation()


def importance_weights(
    truncation: Truncation, policy: Tensor, engine: Tensor, samples: Tensor, own_prompt: Tensor
) -> Tensor:
    """The weights of N tokens' losses, without gradient, [N].

    ``policy`` and ``engine`` [N] are the sampling policy's log-probs by the trainer and by the engine, ``samples`` [N]
    the index of the completion, ``own_prompt`` [N] whether its training prompt is the one it was sampled under.
    """
    if truncation.kind == "off":
        return torch.ones_like(policy)
    difference = (policy - engine).detach()
    if truncation.kind == "sequence":
        _, of_N = samples.unique(return_inverse=True)
        sums = difference.new_zeros(len(difference)).index_add(0, of_N, difference)
        difference = sums[of_N]
    weights = difference.clamp(max=MAX_LOG_RATIO).exp().clamp(max=truncation.cap)
    return torch.where(own_prompt, weights, 1.0)
