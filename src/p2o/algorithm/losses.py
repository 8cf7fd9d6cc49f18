"""The clipped policy-gradient loss per token, and the presets built from it.

With ρ = exp(new − old) and A the advantage, a token's loss is

    max(−A ρ, −A clip(ρ, 1 − low, 1 + high)),   and for A < 0 at most −A · dual.

| preset  | advantage          | denominator                                      |
|---------|--------------------|--------------------------------------------------|
| grpo    | divided by the std | tokens of the optimizer step (the released code) |
| dr_grpo | mean-centred only  | samples of the optimizer step × max_new_tokens   |
| dapo    | divided by the std | tokens of the optimizer step                     |

dapo differs from grpo in its configuration: the upper clip is raised (``policy.clip_high``). Samples of groups that
teach nothing are in no denominator: they are dropped before the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.extensions import ExtensionError, load_object

MAX_LOG_RATIO = 20.0
"""Keeps exp() finite: the gradient of a clipped maximum would multiply infinity by zero."""

TokenMetrics = dict[str, Tensor]
"""Name → one number per token, [N]; the update averages it over the tokens that have a loss."""


def clipped_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[Tensor, TokenMetrics]:
    """Losses of N tokens and what to report of them; all arguments [N]. ``dual_clip=0`` leaves the dual clip out.

    On policy ``old_logprobs`` are ``new_logprobs.detach()``: the ratio is 1 and the gradient that of −A log π.
    """
    ratio = (new_logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip:
        ceiling = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss = torch.where(beyond, ceiling, loss)
        clipped = clipped | beyond
    return loss, {"mean_ratio": ratio.detach(), "clip_fraction": clipped}


@dataclass(frozen=True, slots=True)
class Preset:
    """What a name of ``policy.loss`` stands for."""

    scale_by_std: bool
    per_token: bool
    """Denominator: tokens of the step; otherwise samples of the step times the longest possible completion."""
    loss: Callable[..., tuple[Tensor, TokenMetrics]] = clipped_loss
    """With the signature of :func:`clipped_loss`. Its metrics appear as ``policy/<name>``."""


PRESETS = {
    "grpo": Preset(scale_by_std=True, per_token=True),
    "dr_grpo": Preset(scale_by_std=False, per_token=False),
    "dapo": Preset(scale_by_std=True, per_token=True),
}


def preset(name: str) -> Preset:
    """The preset of ``policy.loss``: one of :data:`PRESETS`, or the :class:`Preset` that a dotted name stands for."""
    if name in PRESETS:
        return PRESETS[name]
    if "." not in name:
        raise ValueError(f"policy.loss={name}: choose one of {', '.join(PRESETS)}, or give a dotted name")
    found = load_object(name, "policy.loss")
    if not isinstance(found, Preset):
        raise ExtensionError(f"policy.loss={name} is a {type(found).__name__}, not a p2o.algorithm.losses.Preset")
    return found
