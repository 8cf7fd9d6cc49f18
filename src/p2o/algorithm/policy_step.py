"""The policy phase's update: groups with their advantages in, optimizer steps and metrics out (equation 6).

:func:`policy_step` is one optimizer step from top to bottom. It sums the gradients of all micro-batches undivided
and divides once, when every token has been counted. So the result does not depend on how the batch was split, and
tokens that the context mask drops can leave the denominator, although they are known only after their forward pass.

Plain functions; a framework hooks in through :class:`Hooks`.

Shapes: N tokens of a micro-batch, M completion tokens of a training set.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from p2o.algorithm.advantages import GroupAdvantages, Signal, group_advantages
from p2o.algorithm.distillation import kept_tokens, old_logprobs
from p2o.algorithm.importance import OFF, Truncation, importance_weights
from p2o.algorithm.losses import preset
from p2o.algorithm.metrics import TokenSums, UpdateMetrics
from p2o.algorithm.nonfinite import NonFiniteError
from p2o.algorithm.training_set import TrainingSet, training_sets
from p2o.config.schema import Config, DistillationConfig, PolicyConfig
from p2o.faults import fault_point
from p2o.policy.layout import MicroBatch
from p2o.policy.memory import TokenBudget, must_fit
from p2o.policy.sharding import whole
from p2o.profile import timed
from p2o.types import Group

if TYPE_CHECKING:
    from p2o.policy.model import Policy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised: the configuration of loss and distillation, and how the rollouts were sampled.

    ``temperature`` is that of the rollouts (0, greedy, counts as 1); ``truncation`` corrects for an engine whose
    log-probs differ from the trainer's.
    """

    policy: PolicyConfig
    distillation: DistillationConfig
    temperature: float
    max_new_tokens: int
    truncation: Truncation = OFF

    @classmethod
    def of(cls, config: Config) -> Objective:
        rollout = config.rollout
        return cls(
            config.policy,
            config.distillation,
            rollout.temperature,
            rollout.max_new_tokens,
            Truncation(rollout.importance, rollout.importance_cap),
        )

    def advantages(self, group: Group) -> GroupAdvantages:
        """Equation 2, as ``policy.loss`` and ``policy.baseline`` set it."""
        scale_by_std = preset(self.policy.loss).scale_by_std
        return group_advantages(group, scale_by_std=scale_by_std, baseline=self.policy.baseline)

    def denominator(self, samples: float, tokens: float, kept: float) -> float:
        """What a step's summed gradient is divided by, given its samples, tokens and tokens that have a loss."""
        if not preset(self.policy.loss).per_token:
            return samples * self.max_new_tokens
        return kept if self.distillation.mask_denominator == "kept" else tokens


class Optimizer(Protocol):
    """The part of an optimizer, or of a framework's wrapper, that an update uses."""

    def step(self) -> object: ...

    def zero_grad(self) -> object: ...


class Schedule(Protocol):
    def step(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where a framework takes part in an update."""

    backward: Callable[[Tensor], object] = Tensor.backward
    """Called instead of ``loss.backward()``."""
    progress: Callable[[int, int], None] | None = None
    """Called after each micro-batch with the completion tokens done and those of the whole update."""


def update(
    policy: Policy,
    optimizer: Optimizer,
    schedule: Schedule | None,
    groups: Sequence[GroupAdvantages],
    objective: Objective,
    *,
    seed: int,
    skipped_before: int = 0,
    hooks: Hooks = Hooks(),
) -> dict[str, float]:
    """Take ``policy.updates_per_round`` optimizer steps on ``groups``; returns the metrics by name.

    Every rank is given all groups, and trains on its share of them.

    Groups without a signal are counted and dropped before any forward pass. ``seed`` decides which groups go into
    which step. ``skipped_before`` is the metric ``skipped_in_a_row`` of the update before. ``schedule`` is stepped
    once per optimizer step, even if that was empty or skipped, so that it keeps pace with the rounds.

    Raises :class:`NonFiniteError` at the ``policy.max_skipped_steps``-th skipped step in a row, and
    :class:`p2o.policy.memory.OutOfMemoryError` if a single sequence does not fit.
    """
    config, ranks = objective.policy, policy.ranks
    policy.check_layout(config.layout)
    all_sets = training_sets(groups, config.updates_per_round, objective.distillation, seed=seed)
    sets = [each.share(config.layout, ranks) for each in all_sets]
    budget = TokenBudget(config.micro_batch_tokens)
    # The first step is on policy: its old log-probs are its own. Later ones need them from before the first step.
    before = [None, *ranks.together(lambda: [_logprobs(policy, later, objective, budget) for later in sets[1:]])]
    metrics = UpdateMetrics(sum(each.tokens for each in sets), skipped_before)
    signals = Counter(group.signal for group in groups)
    scored_tokens = sum(later.tokens for later in all_sets[1:])
    metrics.count(scored_tokens=scored_tokens, **{signal.value: signals[signal] for signal in Signal})
    with policy.training(seed):
        for training_set, old_M in zip(sets, before, strict=True):
            policy_step(policy, optimizer, training_set, old_M, objective, metrics, budget, hooks)
            if metrics.skipped_in_a_row >= config.max_skipped_steps:
                logprobs_M = _logprobs(policy, training_set, objective, budget)
                raise NonFiniteError(metrics.skipped_in_a_row, training_set, logprobs_M)
            if schedule is not None:
                schedule.step()
    return {**metrics.values(), "micro_batch_tokens": min(ranks.gather(lambda: budget.tokens))}


def policy_step(
    policy: Policy,
    optimizer: Optimizer,
    training_set: TrainingSet,
    old_M: Tensor | None,
    objective: Objective,
    metrics: UpdateMetrics,
    budget: TokenBudget,
    hooks: Hooks,
) -> None:
    """One optimizer step: lay out, forward, loss, backward, divide, clip, check, step.

    ``old_M`` are the sampling policy's log-probs under the training prompts; None if it is the policy itself.
    """
    done, ranks = metrics.done_tokens, policy.ranks

    def accumulate(tokens: int) -> TokenSums:
        optimizer.zero_grad()
        metrics.done_tokens, sums = done, TokenSums()
        for batch in policy.micro_batches(training_set.samples, objective.policy.layout, tokens):
            with must_fit(batch):
                with timed("forward", tokens=batch.input_ids.numel()):
                    new_N, entropy_N = _forward(policy, batch, objective)
                policy_N = new_N.detach() if old_M is None else old_M[batch.tokens].to(new_N.device)
                loss = _loss(new_N, entropy_N, policy_N, batch, training_set, objective, sums)
                with timed("backward", tokens=batch.input_ids.numel()):
                    hooks.backward(loss)
            fault_point("a micro-batch")
            metrics.micro_batch(batch.input_ids.numel(), len(batch.targets), hooks.progress)
        return sums

    sums = ranks.together(lambda: budget.fit(accumulate))  # again, in smaller micro-batches, while memory runs out
    gradients = [parameter.grad for parameter in policy.trainable.values() if parameter.grad is not None]
    if not policy.sharded:  # otherwise each backward pass has summed them
        ranks.sum(gradients)
    totals, largest = sums.read(ranks)
    samples = sum(ranks.gather(lambda: len(training_set)))
    loss, kept = totals.pop("loss", (0.0, 0.0))
    tokens = totals["entropy"][1] if totals else 0.0
    metrics.count(trained_samples=samples, trained_tokens=tokens)
    metrics.tokens(totals, largest)
    if denominator := objective.denominator(samples, tokens, kept):
        with timed("optimizer"):
            norm = float(whole(get_total_norm(gradients))) / denominator
            if math.isfinite(norm) and math.isfinite(loss):
                bound = objective.policy.max_grad_norm
                torch._foreach_mul_(gradients, min(1.0, bound / norm if norm else 1.0) / denominator)
                fault_point("before the optimizer's step")
                optimizer.step()
                fault_point("after the optimizer's step")
                metrics.taken(loss / denominator, norm)
            else:
                log.warning("skipping an optimizer step: its loss is %s, its gradient norm %s", loss, norm)
                metrics.skipped()
    optimizer.zero_grad()


def _loss(
    new_N: Tensor,
    entropy_N: Tensor,
    policy_N: Tensor,
    batch: MicroBatch,
    training_set: TrainingSet,
    objective: Objective,
    sums: TokenSums,
) -> Tensor:
    """The sum of the micro-batch's token losses; ``policy_N`` are the sampling policy's log-probs."""
    config, distillation, device = objective.policy, objective.distillation, new_N.device
    engine_N = training_set.engine_logprobs[batch.tokens].to(device)
    samples_N = batch.samples.to(device)
    templated_N = training_set.templated.to(device)[samples_N]
    own_N = training_set.own_prompt.to(device)[samples_N]
    kept_N = kept_tokens(
        distillation.kind, policy_N, engine_N, templated_N, low=distillation.low, high=distillation.high
    )
    losses_N, loss_metrics = preset(config.loss).loss(
        new_N,
        old_logprobs(distillation.kind, policy_N, engine_N, templated_N),
        training_set.advantages.to(device)[samples_N],
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    weights_N = importance_weights(objective.truncation, policy_N, engine_N, samples_N, own_N)
    losses_N = torch.where(kept_N, losses_N * weights_N, 0)
    difference_N = (policy_N - engine_N).double()
    everywhere_N = torch.ones_like(kept_N)
    sums.add({"loss": losses_N, "importance_weight": weights_N, **loss_metrics}, kept_N)
    sums.add({"entropy": entropy_N}, everywhere_N)
    sums.add({"masked_fraction": ~kept_N}, templated_N)
    sums.add(
        {
            "mismatch_mean": difference_N.abs(),
            "mismatch_k1": -difference_N,
            "mismatch_k3": difference_N.expm1() - difference_N,
        },
        own_N,
    )
    sums.largest("mismatch_max", difference_N.abs(), own_N)
    return losses_N.sum()


def _forward(policy: Policy, batch: MicroBatch, objective: Objective) -> tuple[Tensor, Tensor]:
    return policy.logprobs(batch, temperature=objective.temperature or 1.0, chunk=objective.policy.head_chunk_tokens)


@torch.no_grad()
def _logprobs(policy: Policy, training_set: TrainingSet, objective: Objective, budget: TokenBudget) -> Tensor:
    """Log-probs [M] under the training prompts and the current weights."""
    flat_M = torch.empty(training_set.tokens)

    def attempt(tokens: int) -> None:
        for batch in policy.micro_batches(training_set.samples, objective.policy.layout, tokens):
            with must_fit(batch):
                flat_M[batch.tokens] = _forward(policy, batch, objective)[0].cpu()

    budget.fit(attempt)
    return flat_M
