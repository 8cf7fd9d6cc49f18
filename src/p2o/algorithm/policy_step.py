"""One round's update of the policy: graded groups in, optimizer steps and metrics out.

A plain function; a framework hooks in through ``backward`` (instead of ``loss.backward()``) and ``reduce`` (sum over
ranks).

Gradients of all micro-batches of a step are summed without any denominator and divided once, when every token has been
counted: so the result does not depend on how the batch was split, and tokens that the context mask drops can leave the
denominator although they are known only after their forward pass.

A step whose loss or gradient is not finite is skipped, see :mod:`p2o.algorithm.nonfinite`; one that memory does not
suffice for is repeated in smaller parts, see :mod:`p2o.policy.memory`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from p2o.algorithm.distillation import kept_tokens, old_logprobs
from p2o.algorithm.importance import OFF, Truncation, importance_weights
from p2o.algorithm.losses import preset
from p2o.algorithm.nonfinite import NonFiniteError
from p2o.algorithm.samples import TrainingSet, training_sets
from p2o.algorithm.update_metrics import Reduce, Sums, Tally, UpdateMetrics
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.attention import build_blocks
from p2o.policy.head import token_logprobs
from p2o.policy.layout import MicroBatch, micro_batches
from p2o.policy.memory import TokenBudget, must_fit
from p2o.policy.model import Policy
from p2o.profile import timed
from p2o.types import Group, derive_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Objective:
    """The configuration of the loss, and what it needs of the sampling."""

    config: PolicyConfig
    distillation: DistillationConfig
    temperature: float
    max_new_tokens: int
    truncation: Truncation

    def denominator(self, sums: Sums) -> float:
        if not preset(self.config.loss).per_token:
            return sums.samples * self.max_new_tokens
        return sums.kept if self.distillation.mask_denominator == "kept" else sums.tokens


class Steps(Protocol):
    """What is used of an optimizer, or of a framework's wrapper of one."""

    def step(self) -> object: ...

    def zero_grad(self) -> object: ...


class Schedule(Protocol):
    def step(self) -> object: ...


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
    truncation: Truncation = OFF,
    skipped_before: int = 0,
    scheduler: Schedule | None = None,
    backward: Callable[[Tensor], object] = Tensor.backward,
    reduce: Reduce | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> UpdateMetrics:
    """Take ``config.updates_per_round`` optimizer steps on ``groups``.

    Groups without a signal are counted and dropped before any forward pass. ``temperature`` and ``max_new_tokens`` are
    those of the rollouts (greedy counts as temperature 1). ``seed`` decides which groups go into which step.
    ``truncation`` corrects for an engine whose log-probs differ, see :mod:`p2o.algorithm.importance`.
    ``skipped_before`` is ``skipped_in_a_row`` of the update before. ``scheduler`` is stepped once an optimizer step,
    also for one that had nothing to train on or was skipped, so that the schedule keeps time with the rounds.
    ``progress(done, total)`` counts completion tokens.

    Raises :class:`NonFiniteError` at the ``config.max_skipped_steps``-th skipped step in a row, and
    :class:`p2o.policy.memory.OutOfMemoryError` where a single sequence does not fit.
    """
    if config.layout != "padded" and not policy.attends_by_segments:
        raise ValueError(
            f"policy.layout={config.layout} needs model.attn_implementation=sdpa "
            f"(it is {policy.model_config.attn_implementation}): use that, or policy.layout=padded"
        )
    objective = _Objective(config, distillation, temperature or 1.0, max_new_tokens, truncation)
    sets, signals = training_sets(groups, config, distillation, seed=seed)
    budget = TokenBudget(config.micro_batch_tokens)
    # The first step is on policy: its old log-probs are its own. Later ones need them from before the first step.
    old = [None, *(_logprobs(policy, s, objective, budget) for s in sets[1:])]
    tally = Tally(sum(s.tokens for s in sets), progress, skipped_before)
    tally.scored_tokens = sum(s.tokens for s in sets[1:])
    with _training_mode(policy, seed):
        for training_set, before in zip(sets, old, strict=True):
            sums = _accumulate(policy, optimizer, training_set, before, objective, tally, budget, backward)
            sums.denominator = objective.denominator(sums)
            with timed("optimizer"):
                norm = _optimizer_step(policy, optimizer, sums, config.max_grad_norm, reduce)
            tally.step(sums, norm)
            if tally.skipped_in_a_row >= config.max_skipped_steps:
                logprobs = _logprobs(policy, training_set, objective, budget)
                raise NonFiniteError(tally.skipped_in_a_row, training_set, logprobs)
            if scheduler is not None:
                scheduler.step()
    return tally.metrics(signals, budget.tokens)


def _lay_out(policy: Policy, training_set: TrainingSet, config: PolicyConfig, tokens: int) -> list[MicroBatch]:
    return micro_batches(training_set.samples, config.layout, tokens, pad_id=policy.tokenizer.pad_token_id)


@contextmanager
def _training_mode(policy: Policy, seed: int) -> Iterator[None]:
    """Dropout on, drawn from ``seed`` and not from the state that the global generator happens to be in."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed("dropout", seed))
        policy.module.train()
        try:
            yield
        finally:
            policy.module.eval()


def _forward(policy: Policy, batch: MicroBatch, objective: _Objective) -> tuple[Tensor, Tensor]:
    """Log-probs of a micro-batch's targets under the current weights, and the entropies, [N] each."""
    device = policy.device
    mask = (
        build_blocks(batch.segments, batch.input_ids.numel(), device)
        if policy.attends_by_segments
        else batch.padding_mask.to(device)
    )
    hidden_BTD = policy.hidden_states(batch.input_ids.to(device), batch.position_ids.to(device), mask)
    weight, bias = policy.head()
    return token_logprobs(
        hidden_BTD.flatten(0, 1)[batch.predictors.to(device)],
        weight,
        bias,
        batch.targets.to(device),
        temperature=objective.temperature,
        chunk=objective.config.head_chunk_tokens,
        dtype=policy.dtype,
    )


@torch.no_grad()
def _logprobs(policy: Policy, training_set: TrainingSet, objective: _Objective, budget: TokenBudget) -> Tensor:
    """Log-probs [M] under the training prompts and the current weights."""
    flat = torch.empty(training_set.tokens)

    def attempt(tokens: int) -> None:
        for batch in _lay_out(policy, training_set, objective.config, tokens):
            with must_fit(batch):
                flat[batch.tokens] = _forward(policy, batch, objective)[0].cpu()

    budget.fit(attempt)
    return flat


def _accumulate(
    policy: Policy,
    optimizer: Steps,
    training_set: TrainingSet,
    before: Tensor | None,
    objective: _Objective,
    tally: Tally,
    budget: TokenBudget,
    backward: Callable[[Tensor], object],
) -> Sums:
    """Forward and backward over a step's micro-batches; leaves the sum of the tokens' gradients in the parameters."""
    done = tally.done_tokens

    def attempt(tokens: int) -> Sums:
        optimizer.zero_grad()
        tally.done_tokens = done
        total = Sums(samples=len(training_set))
        for batch in _lay_out(policy, training_set, objective.config, tokens):
            with must_fit(batch):
                rows, targets = batch.input_ids.numel(), len(batch.targets)
                with timed("forward", layers=rows, head=targets):
                    new_N, entropy_N = _forward(policy, batch, objective)
                policy_N = new_N.detach() if before is None else before[batch.tokens].to(new_N.device)
                loss, sums = _loss(new_N, entropy_N, policy_N, batch, training_set, objective, tally)
                with timed("backward", layers=rows, head=targets):
                    backward(loss)
            total.add(sums)
            tally.micro_batch(batch)
        return total

    return budget.fit(attempt)


def _loss(
    new_N: Tensor,
    entropy_N: Tensor,
    policy_N: Tensor,
    batch: MicroBatch,
    training_set: TrainingSet,
    objective: _Objective,
    tally: Tally,
) -> tuple[Tensor, Sums]:
    """The sum of the micro-batch's token losses; ``policy_N`` are the sampling policy's log-probs."""
    config, distillation, device = objective.config, objective.distillation, new_N.device
    engine_N = training_set.engine_logprobs[batch.tokens].to(device)
    templated_N = training_set.templated[batch.samples].to(device)
    kept_N = kept_tokens(
        distillation.kind, policy_N, engine_N, templated_N, low=distillation.low, high=distillation.high
    )
    losses = preset(config.loss).losses(
        new_N,
        old_logprobs(distillation.kind, policy_N, engine_N, templated_N),
        training_set.advantages[batch.samples].to(device),
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    own_N = training_set.own_prompt[batch.samples].to(device)
    weights_N = importance_weights(objective.truncation, policy_N, engine_N, batch.samples.to(device), own_N)
    loss = (losses.loss * weights_N)[kept_N].sum()
    difference = (policy_N - engine_N)[own_N].double()
    tally.mismatch(difference)
    return loss, Sums(
        loss=float(loss.detach()),
        tokens=len(new_N),
        entropy=float(entropy_N.sum()),
        kept=int(kept_N.sum()),
        ratio=float(losses.ratio[kept_N].sum()),
        clipped=int(losses.clipped[kept_N].sum()),
        templated=int(templated_N.sum()),
        masked=int((~kept_N).sum()),
        weight=float(weights_N[kept_N].sum()),
        compared=len(difference),
        absolute=float(difference.abs().sum()),
        k1=-float(difference.sum()),
        k3=float((difference.expm1() - difference).sum()),
    )


def _optimizer_step(
    policy: Policy, optimizer: Steps, sums: Sums, max_grad_norm: float, reduce: Reduce | None
) -> float | None:
    """Divide the summed gradients, clip them and step.

    Returns the gradient's norm; None where nothing was trained, NaN where loss or gradient were not finite and the step
    was skipped.
    """
    parameters = list(policy.trainable.values())
    if reduce is not None:
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        reduce([p.grad for p in parameters if p.grad is not None])
        sums.reduce(reduce)
    if not sums.denominator:
        optimizer.zero_grad()
        return None
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(get_total_norm(gradients)) / sums.denominator
    finite = math.isfinite(norm) and math.isfinite(sums.loss)
    if finite:
        torch._foreach_mul_(gradients, min(1.0, max_grad_norm / norm if norm else 1.0) / sums.denominator)
        optimizer.step()
    else:
        log.warning("an optimizer step is skipped: its loss is %s, its gradient's norm %s", sums.loss, norm)
    optimizer.zero_grad()
    return norm if finite else math.nan
