"""How a rollout that was sampled under a template teaches the plain question (context distillation).

A templated rollout ỹ was drawn from π(·|x̃), x̃ = T(x, z), and should move π(·|x) (equation 6). The kinds:

    replace      train on x; the old log-probs are those under x too, so the ratio starts at 1
    importance   train on x; the old log-probs are those under x̃, so the ratio is the importance ratio, and is clipped
    mask         as replace, but a token with ρ = π_old(y_t | x) / π_old(y_t | x̃) outside [low, high] gets no loss
                 (equation 8); ρ is a mask, never a weight
    off          train on x̃ as it was sampled: the ablation "without context distillation"

Plain rollouts are the same under all four. The engine recorded the log-probs under x̃ when it sampled, so they
cost no forward pass.

Shapes: N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("off", "replace", "importance", "mask")


def training_prompt(kind: str, plain: tuple[int, ...], sampled: tuple[int, ...]) -> tuple[int, ...]:
    """The prompt that a rollout is trained under: the plain one, or with ``off`` the one that it was sampled under."""
    if kind not in KINDS:
        raise ValueError(f"distillation.kind={kind}: choose one of {', '.join(KINDS)}")
    return sampled if kind == "off" else plain


def old_logprobs(kind: str, policy: Tensor, engine: Tensor, templated: Tensor) -> Tensor:
    """The denominator of the policy ratio, [N].

    ``policy`` [N] are the sampling policy's log-probs under the training prompt, ``engine`` [N] those that the tokens
    were sampled with, ``templated`` [N] is True for tokens of templated rollouts.
    """
    return torch.where(templated, engine, policy) if kind == "importance" else policy


def kept_tokens(kind: str, policy: Tensor, engine: Tensor, templated: Tensor, *, low: float, high: float) -> Tensor:
    """True if a token has a loss, [N]; arguments as in :func:`old_logprobs`. Only ``mask`` drops any."""
    if kind != "mask":
        return torch.ones_like(templated)
    log_ratio = policy - engine
    return ~templated | ((log_ratio >= math.log(low)) & (log_ratio <= math.log(high)))
