"""Steps whose numbers fail: skipped without a trace, counted, and the end of the run when they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from groups import mixed_groups, take_update
from ranks import on_ranks
from torch import Tensor

from p2o.algorithm.nonfinite import NonFiniteError
from p2o.callbacks.failed_batch import failed_batch
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.model import Policy
from p2o.types import Group

Tiny = Callable[..., Policy]


def adamw(policy: Policy) -> torch.optim.AdamW:
    return torch.optim.AdamW(policy.trainable.values(), lr=1e-3)


def step(
    policy: Policy, optimizer: torch.optim.Optimizer, groups: Sequence[Group] | None = None, **more: Any
) -> SimpleNamespace:
    config = PolicyConfig(micro_batch_tokens=40, updates_per_round=more.pop("updates", 1))
    distillation = DistillationConfig(kind=more.pop("kind", "mask"))
    groups = mixed_groups() if groups is None else groups
    return take_update(policy, optimizer, groups, config, distillation, **more)


@contextmanager
def poisoned(policy: Policy, value: float) -> Iterator[None]:
    """One number of one trained tensor is ``value``."""
    first = next(iter(policy.trainable.values()))
    before = float(first.detach().view(-1)[0])
    first.data.view(-1)[0] = value
    try:
        yield
    finally:
        first.data.view(-1)[0] = before


def copied(policy: Policy, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [t for of in optimizer.state_dict()["state"].values() for t in of.values()]
    return [t.detach().clone() for t in (*policy.trainable.values(), *state)]


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(value: float, tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    optimizer = adamw(policy)
    assert step(policy, optimizer).steps == 1
    before = copied(policy, optimizer)
    with poisoned(policy, value):
        metrics = step(policy, optimizer)
    assert (metrics.steps, metrics.skipped, metrics.skipped_in_a_row) == (0, 1, 1)
    after = copied(policy, optimizer)
    assert len(before) == len(after) > len(policy.trainable)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in policy.trainable.values())
    again = step(policy, optimizer, skipped_before=metrics.skipped_in_a_row)
    assert (again.steps, again.skipped, again.skipped_in_a_row) == (1, 0, 0)
    assert math.isfinite(again.loss)


def test_a_loss_that_is_no_number_skips_the_step_whatever_the_gradient(tiny_policy: Tiny) -> None:
    """An engine's broken log-prob makes a loss of NaN; the backward pass here hides it from the gradient."""
    policy = tiny_policy()
    optimizer = adamw(policy)
    broken = mixed_groups()[4]
    first = replace(broken.rollouts[0], logprobs=(math.nan,) * len(broken.rollouts[0].tokens))
    groups = [replace(broken, rollouts=(first, *broken.rollouts[1:]))]
    before = copied(policy, optimizer)

    def finite_backward(loss: Tensor) -> None:
        loss.backward()
        for p in policy.trainable.values():
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0).add_(1e-3)

    metrics = step(policy, optimizer, groups, kind="importance", backward=finite_backward)
    assert (metrics.steps, metrics.skipped) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, copied(policy, optimizer), strict=True))


def test_the_third_in_a_row_ends_it_also_over_several_updates(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    optimizer = adamw(policy)
    with poisoned(policy, math.nan):
        first = step(policy, optimizer, updates=2)
        assert (first.skipped, first.skipped_in_a_row) == (2, 2)
        idle = step(policy, optimizer, mixed_groups()[1:2], skipped_before=first.skipped_in_a_row)
        assert (idle.skipped, idle.skipped_in_a_row) == (0, 2), "a step with nothing to train says nothing"
        with pytest.raises(NonFiniteError, match="not finite in 3 optimizer steps in a row"):
            step(policy, optimizer, skipped_before=idle.skipped_in_a_row)


def test_the_batch_is_handed_over_in_full(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    with poisoned(policy, math.nan), pytest.raises(NonFiniteError) as caught:
        step(policy, adamw(policy), skipped_before=2)
    rows = [json.loads(json.dumps(row, allow_nan=False)) for row in failed_batch(caught.value)]
    groups = {g.problem.id: g for g in mixed_groups()}
    assert sorted({row["problem_id"] for row in rows}) == ["all templated", "plain", "two templates"]
    assert len(rows) == 12
    seen: dict[str, int] = {}
    for row in rows:
        index = seen[row["problem_id"]] = seen.get(row["problem_id"], -1) + 1
        own = groups[row["problem_id"]]
        answer = own.rollouts[index]
        assert tuple(row["prompt"]) == own.plain_prompt
        assert tuple(row["completion"]) == answer.tokens
        assert row["templated"] is not answer.plain
        assert row["engine_logprobs"] == pytest.approx(answer.logprobs)
        assert row["logprobs"] == ["nan"] * len(answer.tokens)
        assert (row["advantage"] > 0) == (answer.reward > sum(own.rewards) / 4)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_fails_makes_all_skip(bad: int, tiny_policy: Tiny) -> None:
    policies = [tiny_policy() for _ in range(2)]
    optimizers = [adamw(policy) for policy in policies]
    before = [copied(p, o) for p, o in zip(policies, optimizers, strict=True)]
    with poisoned(policies[bad], math.nan):
        results = on_ranks(2, lambda on: step(policies[on.rank], optimizers[on.rank], ranks=on))
    assert [(results[r].steps, results[r].skipped, results[r].skipped_in_a_row) for r in range(2)] == [(0, 1, 1)] * 2
    for rank in range(2):
        after = copied(policies[rank], optimizers[rank])
        assert all(torch.equal(a, b) for a, b in zip(before[rank], after, strict=True))
