"""What an update did: sums over tokens while it runs, means at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from p2o.algorithm.advantages import Signal
from p2o.policy.layout import MicroBatch

Reduce = Callable[[Sequence[Tensor]], None]
"""Sums tensors over all ranks, in place. Every rank calls it equally often, with or without live groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMetrics:
    """What an update did. Means are over tokens; with ``reduce`` sums and counts are over all ranks where not said."""

    loss: float = 0.0
    """Surrogate loss; its value is no measure of progress."""
    grad_norm: float = 0.0
    """Before clipping, mean over the optimizer steps."""
    entropy: float = 0.0
    """Of the sampling distribution, nats a token."""
    mean_ratio: float = 0.0
    """π_new / π_old over the tokens that have a loss; exactly 1 on policy unless distillation=importance."""
    clip_fraction: float = 0.0
    masked_fraction: float = 0.0
    """Tokens that the context mask dropped, of those of templated rollouts."""
    mismatch_mean: float = 0.0
    """Mean |d|, d = log π_trainer − log π_engine, over rollouts trained under the prompt they were sampled under."""
    mismatch_k1: float = 0.0
    """Mean of −d: an estimate of KL(engine ‖ trainer), of either sign."""
    mismatch_k3: float = 0.0
    """Mean of exp(d) − 1 − d: the estimate that is never negative."""
    importance_weight: float = 0.0
    """Mean weight of truncated importance sampling over the tokens that have a loss; 1 where it is off."""
    mismatch_max: float = 0.0
    """Largest |d| (of this rank)."""
    live: int = 0
    """Groups that taught something (of this rank, as are the next three)."""
    all_fail: int = 0
    all_pass: int = 0
    no_contrast: int = 0
    trained_samples: int = 0
    trained_tokens: int = 0
    """Completion tokens that went through the loss."""
    scored_tokens: int = 0
    """Completion tokens whose log-probs were computed without a gradient, before the first step (of this rank)."""
    forward_tokens: int = 0
    """Tokens that went through the model with gradient, prompts and padding included (of this rank)."""
    steps: int = 0
    skipped: int = 0
    """Steps that were not taken because loss or gradient were not finite."""
    skipped_in_a_row: int = 0
    """Those of them, and of the updates before, that no taken step came after."""
    micro_batch_tokens: int = 0
    """The token budget at the end: less than was given where memory ran out (of this rank)."""


@dataclass(slots=True)
class Sums:
    """Sums over tokens, except ``samples``; ``denominator`` is what the step's gradient is divided by."""

    loss: float = 0.0
    denominator: float = 0.0
    tokens: float = 0.0
    samples: float = 0.0
    entropy: float = 0.0
    kept: float = 0.0
    ratio: float = 0.0
    clipped: float = 0.0
    templated: float = 0.0
    masked: float = 0.0
    weight: float = 0.0
    compared: float = 0.0
    absolute: float = 0.0
    k1: float = 0.0
    k3: float = 0.0

    def add(self, other: Sums) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def reduce(self, reduce: Reduce) -> None:
        values = torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.float64)
        reduce([values])
        for f, value in zip(fields(self), values.tolist(), strict=True):
            setattr(self, f.name, value)


class Tally:
    """Adds an update's steps up to its metrics."""

    def __init__(
        self, total_tokens: int, progress: Callable[[int, int], None] | None, skipped_in_a_row: int = 0
    ) -> None:
        self.total_tokens = total_tokens
        self.progress = progress
        self.done_tokens = 0
        self.forward_tokens = 0
        self.scored_tokens = 0
        self.worst = 0.0
        self.sums = Sums()
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped = 0
        self.skipped_in_a_row = skipped_in_a_row

    def micro_batch(self, batch: MicroBatch) -> None:
        self.forward_tokens += batch.input_ids.numel()
        self.done_tokens += len(batch.targets)
        if self.progress is not None:
            self.progress(self.done_tokens, self.total_tokens)

    def mismatch(self, difference: Tensor) -> None:
        if len(difference):
            self.worst = max(self.worst, float(difference.abs().max()))

    def step(self, sums: Sums, norm: float | None) -> None:
        """``norm`` is the gradient's, None where nothing was trained, NaN where the step was skipped."""
        self.sums.add(sums)
        if norm is None:
            return
        if math.isnan(norm):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.norms.append(norm)
        self.losses.append(sums.loss / sums.denominator)

    def metrics(self, signals: Mapping[Signal, int], micro_batch_tokens: int) -> UpdateMetrics:
        s = self.sums
        return UpdateMetrics(
            loss=_share(sum(self.losses), len(self.losses)),
            grad_norm=_share(sum(self.norms), len(self.norms)),
            entropy=_share(s.entropy, s.tokens),
            mean_ratio=_share(s.ratio, s.kept),
            clip_fraction=_share(s.clipped, s.kept),
            masked_fraction=_share(s.masked, s.templated),
            mismatch_mean=_share(s.absolute, s.compared),
            mismatch_k1=_share(s.k1, s.compared),
            mismatch_k3=_share(s.k3, s.compared),
            importance_weight=_share(s.weight, s.kept),
            mismatch_max=self.worst,
            live=signals.get(Signal.LIVE, 0),
            all_fail=signals.get(Signal.ALL_FAIL, 0),
            all_pass=signals.get(Signal.ALL_PASS, 0),
            no_contrast=signals.get(Signal.NO_CONTRAST, 0),
            trained_samples=round(s.samples),
            trained_tokens=round(s.tokens),
            scored_tokens=self.scored_tokens,
            forward_tokens=self.forward_tokens,
            steps=len(self.norms),
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            micro_batch_tokens=micro_batch_tokens,
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
