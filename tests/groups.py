"""Graded groups made by hand, and optimizers that show what an update handed them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from p2o.algorithm.importance import OFF, Truncation
from p2o.algorithm.policy_step import Hooks, Objective, update
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.model import Policy
from p2o.ranks import ALONE
from p2o.types import PLAIN, Grade, Group, Outcome, Problem, Rollout

LETTERS = range(97, 123)


def rollout(
    reward: float,
    template_id: str = PLAIN,
    *,
    prompt: tuple[int, ...] = (1,),
    tokens: tuple[int, ...] = (2,),
    logprobs: tuple[float, ...] | None = None,
    outcome: Outcome | None = None,
) -> Rollout:
    if outcome is None:
        outcome = Outcome.CORRECT if reward == 1 else Outcome.WRONG
    if logprobs is None:
        logprobs = (-5.5,) * len(tokens)
    return Rollout("q", template_id, 0, prompt, tokens, logprobs, "", "stop", Grade(outcome, reward), 0)


def group(rollouts: Iterable[Rollout], problem_id: str = "q", plain_prompt: tuple[int, ...] = (1,)) -> Group:
    own = tuple(replace(r, problem_id=problem_id, index=i) for i, r in enumerate(rollouts))
    return Group(Problem(problem_id, "", ""), plain_prompt, own)


def random_group(problem_id: str, rewards: Sequence[float], templates: Sequence[str], seed: int) -> Group:
    """Random letters: a plain prompt of 5 to 9, templated ones that begin with a template's own, answers of 1 to 9."""
    draw = random.Random(seed)

    def letters(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.choices(LETTERS, k=draw.randint(low, high)))

    plain = letters(5, 9)
    prefixes = {name: () if name == PLAIN else letters(3, 6) for name in dict.fromkeys(templates)}
    rollouts = []
    for reward, name in zip(rewards, templates, strict=True):
        tokens = letters(1, 9)
        logprobs = tuple(draw.gauss(-5.5, 0.7) for _ in tokens)
        rollouts.append(rollout(reward, name, prompt=prefixes[name] + plain, tokens=tokens, logprobs=logprobs))
    return group(rollouts, problem_id, plain)


def mixed_groups() -> list[Group]:
    """Three groups that teach (one of plain rollouts only), one without and one with nothing but successes."""
    return [
        random_group("plain", (1, 0, 0, 0), (PLAIN,) * 4, seed=1),
        random_group("dead", (0, 0, 0, 0), (PLAIN,) * 4, seed=2),
        random_group("two templates", (0, 1, 0, 1), (PLAIN, "a", "a", "b"), seed=3),
        random_group("solved", (1, 1, 1, 1), ("a", "b", PLAIN, "b"), seed=4),
        random_group("all templated", (0.25, 1, 0, 0), ("c", "c", "d", "d"), seed=5),
    ]


class Recorder:
    """An optimizer that keeps the gradients that it is handed, and the weights before each step.

    With ``learning_rate`` it also goes down them.
    """

    def __init__(self, trainable: dict[str, nn.Parameter], learning_rate: float = 0.0) -> None:
        self.trainable = trainable
        self.learning_rate = learning_rate
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def step(self) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in self.trainable.items() if p.grad is not None})
        self.weights.append({n: p.detach().clone() for n, p in self.trainable.items()})
        for p in self.trainable.values():
            if p.grad is not None:
                p.sub_(self.learning_rate * p.grad)

    def zero_grad(self) -> None:
        for p in self.trainable.values():
            p.grad = None


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal in every tensor, up to ``tolerance`` of the largest entry of that tensor."""
    assert got.keys() == expected.keys()
    for name, one in got.items():
        other = expected[name].to(one.dtype)
        bound = tolerance * float(other.abs().max()) + 1e-9
        torch.testing.assert_close(one, other, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


def take_update(
    policy: Policy,
    optimizer: Any,
    groups: Sequence[Group],
    config: PolicyConfig,
    distillation: DistillationConfig,
    *,
    truncation: Truncation = OFF,
    scheduler: Any = None,
    **more: Any,
) -> SimpleNamespace:
    """The metrics of an update on ``groups``, as attributes. ``more`` are temperature, max_new_tokens, seed,
    skipped_before, the ranks and the hooks."""
    objective = Objective(
        config, distillation, more.pop("temperature", 0.8), more.pop("max_new_tokens", 12), truncation
    )
    scored = [objective.advantages(group) for group in groups]
    policy.ranks = more.pop("ranks", ALONE)
    steps = {"seed": more.pop("seed", 3), "skipped_before": more.pop("skipped_before", 0)}
    return SimpleNamespace(**update(policy, optimizer, scheduler, scored, objective, **steps, hooks=Hooks(**more)))
