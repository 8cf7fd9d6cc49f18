"""One round's update: from graded groups to optimizer steps on the plain questions, free of Lightning.

Shapes: N tokens of a micro-batch, M tokens of all samples of an optimizer step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.advantages import group_advantages, is_live
from p2o.policy.attention import build_blocks
from p2o.policy.distillation import Distillation, taught
from p2o.policy.head import token_logprobs
from p2o.policy.layout import MicroBatch, Sample, micro_batches
from p2o.policy.losses import PRESETS, token_losses
from p2o.policy.model import Policy
from p2o.types import Group

Progress = Callable[[int, int], None]
"""Called with the micro-batches done and their number."""


class Steps(Protocol):
    """The part of an optimizer, or of Lightning's wrapper of one, that is used."""

    def step(self) -> object: ...

    def zero_grad(self) -> object: ...


class Schedule(Protocol):
    def step(self) -> object: ...


@dataclass(slots=True)
class UpdateMetrics:
    """What an update did; means are over trained completion tokens. ``mismatch_*`` compare the engine's log-probs of
    plain rollouts with the trainer's, which should agree up to rounding. ``skipped`` counts steps that were not taken
    because their gradient was not finite."""

    loss: float = 0.0
    grad_norm: float = 0.0
    entropy: float = 0.0
    clip_fraction: float = 0.0
    masked_fraction: float = 0.0
    live: int = 0
    all_fail: int = 0
    all_pass: int = 0
    trained_tokens: int = 0
    mismatch_mean: float = 0.0
    mismatch_max: float = 0.0
    skipped: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one optimizer step, flat over all their tokens."""

    samples: list[Sample]
    advantages: Tensor
    """[M]"""
    sampled: Tensor
    """[M] log-probs of the engine, under the prompt that was sampled."""
    templated: Tensor
    """[M] bool"""
    micro: list[MicroBatch]


def update(
    policy: Policy,
    optimizer: Steps,
    groups: Sequence[Group],
    config: PolicyConfig,
    distillation: DistillationConfig,
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    scheduler: Schedule | None = None,
    backward: Callable[[Tensor], object] = Tensor.backward,
    progress: Progress | None = None,
) -> UpdateMetrics:
    """``config.updates_per_round`` optimizer steps on the groups of a round; groups with equal rewards are left out.

    The first step is on-policy, so its old log-probs are its own; where more follow, those of all samples are computed
    beforehand. ``temperature`` is that of the rollouts. ``seed`` decides which groups go into which step.
    """
    live = [group for group in groups if is_live(group.rewards)]
    metrics = UpdateMetrics(live=len(live))
    metrics.all_pass = sum(min(group.rewards) >= 1 for group in groups if not is_live(group.rewards))
    metrics.all_fail = len(groups) - len(live) - metrics.all_pass
    random.Random(seed).shuffle(live)
    number = min(config.updates_per_round, len(live))
    batches = [
        build_batch(live[i::number], config, distillation, policy.tokenizer.pad_token_id or 0) for i in range(number)
    ]
    score = _Scorer(policy, temperature, config.head_chunk_tokens)
    olds = [score.without_gradient(batch) if number > 1 else None for batch in batches]
    total = sum(len(batch.micro) for batch in batches)
    done = 0
    for batch, old_M in zip(batches, olds, strict=True):
        step = _Step(batch, old_M, config, distillation, score, backward, max_new_tokens)
        for micro in batch.micro:
            step.accumulate(micro)
            done += 1
            if progress is not None:
                progress(done, total)
        step.finish(policy, optimizer, metrics, number)
    if scheduler is not None:
        for _ in range(config.updates_per_round):
            scheduler.step()
    return metrics


def build_batch(groups: Sequence[Group], config: PolicyConfig, distillation: DistillationConfig, pad_id: int) -> Batch:
    """The samples of some live groups, laid out in micro-batches."""
    mode = Distillation(distillation.kind, distillation.low, distillation.high)
    samples: list[Sample] = []
    advantages: list[float] = []
    sampled: list[float] = []
    templated: list[bool] = []
    for group in groups:
        members = [rollout.template_id for rollout in group.rollouts] if config.baseline == "template" else None
        values = group_advantages(group.rewards, normalise=PRESETS[config.loss].normalise, members=members).tolist()
        for i in taught(group.rollouts, values, distillation.positive_only):
            rollout = group.rollouts[i]
            samples.append(Sample(mode.prompt(group, rollout), rollout.tokens))
            advantages += [values[i]] * len(rollout.tokens)
            sampled += rollout.logprobs
            templated += [not rollout.plain] * len(rollout.tokens)
    return Batch(
        samples,
        torch.tensor(advantages),
        torch.tensor(sampled),
        torch.tensor(templated, dtype=torch.bool),
        micro_batches(samples, config.layout, config.micro_batch_tokens, pad_id=pad_id),
    )


def advantages_of(group: Group, config: PolicyConfig) -> list[float]:
    """The K advantages of a group under ``policy.loss`` and ``policy.baseline``."""
    members = [rollout.template_id for rollout in group.rollouts] if config.baseline == "template" else None
    return group_advantages(group.rewards, normalise=PRESETS[config.loss].normalise, members=members).tolist()


class _Scorer:
    """Log-probs and entropies of a micro-batch's targets under the policy, at the temperature of the rollouts."""

    def __init__(self, policy: Policy, temperature: float, chunk: int) -> None:
        self.policy = policy
        self.temperature = temperature
        self.chunk = chunk

    def __call__(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        policy, device = self.policy, self.policy.device
        attention = (
            build_blocks(micro.segments, micro.input_ids.numel(), device)
            if policy.attends_by_segments
            else micro.padding_mask.to(device)
        )
        hidden = policy.hidden_states(micro.input_ids.to(device), micro.position_ids.to(device), attention)
        weight, bias = policy.head()
        return token_logprobs(
            hidden.flatten(0, 1)[micro.predictors.to(device)],
            weight,
            bias,
            micro.targets.to(device),
            temperature=self.temperature,
            chunk=self.chunk,
            dtype=policy.dtype,
        )

    @torch.no_grad()
    def without_gradient(self, batch: Batch) -> Tensor:
        """Log-probs [M] of all tokens of a step."""
        old_M = torch.empty_like(batch.sampled)
        for micro in batch.micro:
            old_M[micro.tokens] = self(micro)[0].cpu()
        return old_M


class _Step:
    """One optimizer step: sums of losses go backward as they come, one denominator divides the gradients at the end.

    So it may depend on what the forward passes find (how many tokens the mask keeps), and no split into micro-batches
    can change it.
    """

    def __init__(
        self,
        batch: Batch,
        old_M: Tensor | None,
        config: PolicyConfig,
        distillation: DistillationConfig,
        score: _Scorer,
        backward: Callable[[Tensor], object],
        max_new_tokens: int,
    ) -> None:
        self.batch = batch
        self.old_M = old_M
        self.config = config
        self.mode = Distillation(distillation.kind, distillation.low, distillation.high)
        self.count_masked = distillation.mask_denominator == "all"
        self.score = score
        self.backward = backward
        self.max_new_tokens = max_new_tokens
        self.sums = dict.fromkeys(("loss", "entropy", "clipped", "kept", "mismatch", "plain"), 0.0)
        self.worst = 0.0

    def accumulate(self, micro: MicroBatch) -> None:
        new_N, entropy_N = self.score(micro)
        device, batch = new_N.device, self.batch
        sampled_N, templated_N, advantages_N = (
            of_M[micro.tokens].to(device) for of_M in (batch.sampled, batch.templated, batch.advantages)
        )
        plain_old_N = new_N.detach() if self.old_M is None else self.old_M[micro.tokens].to(device)
        kept_N = self.mode.kept(plain_old_N, sampled_N, templated_N)
        losses_N, clipped_N = token_losses(
            new_N,
            self.mode.old_logprobs(plain_old_N, sampled_N, templated_N),
            advantages_N,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            dual_clip=self.config.dual_clip,
        )
        loss = torch.where(kept_N, losses_N, 0.0).sum()
        self.backward(loss)
        gap_N = (plain_old_N - sampled_N).abs()[~templated_N]
        found = {
            "loss": loss.detach(),
            "entropy": entropy_N.sum(),
            "clipped": (clipped_N & kept_N).sum(),
            "kept": kept_N.sum(),
            "mismatch": gap_N.sum(),
            "plain": torch.tensor(len(gap_N)),
        }
        for name, value in found.items():
            self.sums[name] += float(value)
        self.worst = max(self.worst, float(gap_N.max()) if len(gap_N) else 0.0)

    def finish(self, policy: Policy, optimizer: Steps, metrics: UpdateMetrics, number: int) -> None:
        """Divide, clip, step. A non-finite gradient skips the step."""
        tokens, sums = len(self.batch.advantages), self.sums
        counted = tokens if self.count_masked else sums["kept"]
        denominator = PRESETS[self.config.loss].denominator(counted, len(self.batch.samples), self.max_new_tokens)
        parameters = [p for p in policy.trainable.values() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= max(denominator, 1.0)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if math.isfinite(norm):
            optimizer.step()
            metrics.steps += 1
        else:
            metrics.skipped += 1
        optimizer.zero_grad()
        metrics.loss += sums["loss"] / max(denominator, 1.0) / number
        metrics.grad_norm += norm / number
        metrics.entropy += sums["entropy"] / tokens / number
        metrics.clip_fraction += sums["clipped"] / max(sums["kept"], 1.0) / number
        metrics.masked_fraction += (1 - sums["kept"] / tokens) / number
        metrics.mismatch_mean += sums["mismatch"] / max(sums["plain"], 1.0) / number
        metrics.mismatch_max = max(metrics.mismatch_max, self.worst)
        metrics.trained_tokens += tokens
