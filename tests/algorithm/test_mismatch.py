"""Truncated importance sampling: the weights by hand, and what they do to an update's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from groups import Recorder, assert_same_gradients, group, rollout, take_update
from torch import Tensor

from p2o.algorithm.importance import OFF, Truncation, importance_weights
from p2o.algorithm.policy_step import Objective, _logprobs
from p2o.algorithm.training_set import training_sets
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.layout import LAYOUTS
from p2o.policy.memory import TokenBudget
from p2o.policy.model import Policy
from p2o.types import Group

RATIOS = torch.tensor([0.5, 3.0, 1.0, 1.5, 4.0])
SAMPLES = torch.tensor([7, 7, 2, 2, 5])
"""Two tokens of one completion, two of another, one of a third, which is trained under another prompt."""
OWN = torch.tensor([True, True, True, True, False])


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (OFF, [1, 1, 1, 1, 1]),
        (Truncation("token", 2.0), [0.5, 2.0, 1.0, 1.5, 1]),
        (Truncation("token", 1.0), [0.5, 1.0, 1.0, 1.0, 1]),
        (Truncation("sequence", 2.0), [1.5, 1.5, 1.5, 1.5, 1]),
        (Truncation("sequence", 1.2), [1.2, 1.2, 1.2, 1.2, 1]),
    ],
)
def test_weights_by_hand(truncation: Truncation, expected: list[float]) -> None:
    engine = torch.tensor([-1.0, -2.0, -3.0, -0.5, -2.5])
    policy = (engine + RATIOS.log()).requires_grad_()
    weights = importance_weights(truncation, policy, engine, SAMPLES, OWN)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert not weights.requires_grad


def test_a_sequence_of_any_length_stays_finite() -> None:
    """A long completion's ratio would overflow; its weight is the cap, or nothing."""
    far = torch.full((2000,), 0.5)
    samples, own = torch.zeros(2000, dtype=torch.long), torch.ones(2000, dtype=torch.bool)
    truncation = Truncation("sequence", 2.0)
    assert importance_weights(truncation, far, torch.zeros(2000), samples, own).eq(2.0).all()
    assert importance_weights(truncation, -far, torch.zeros(2000), samples, own).eq(0.0).all()


def test_what_is_no_kind_or_no_cap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout\.importance=tokens"):
        Truncation("tokens")
    with pytest.raises(ValueError, match=r"rollout\.importance_cap=0\.5"):
        Truncation("token", 0.5)


TOKENS = ((100, 101), (102, 103), (104, 105))


def answers(policy: Policy, ratio: float) -> Group:
    """Answers of two tokens each, every token ``ratio`` times as probable to the trainer as to the engine."""
    made = group([rollout(float(i == 0), prompt=(97, 98), tokens=t) for i, t in enumerate(TOKENS)], "q", (97, 98))
    config, distillation = PolicyConfig(), DistillationConfig()
    objective = Objective(config, distillation, 1.0, 2, OFF)
    (whole,) = training_sets([objective.advantages(made)], 1, distillation, seed=0)
    flat: Tensor = _logprobs(policy, whole, objective, TokenBudget(512))  # the trainer's own numbers
    engine = (flat - math.log(ratio)).view(3, 2).tolist()
    return group(
        [
            rollout(r.reward, prompt=(97, 98), tokens=r.tokens, logprobs=tuple(logprobs))
            for r, logprobs in zip(made.rollouts, engine, strict=True)
        ],
        "q",
        (97, 98),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("truncation", "factor"),
    [
        (OFF, 1.0),
        (Truncation("token", 4.0), 1.5),
        (Truncation("token", 1.2), 1.2),
        (Truncation("sequence", 4.0), 2.25),
    ],
)
def test_the_gradient_is_weighted(
    truncation: Truncation, factor: float, layout: str, tiny_policy: Callable[..., Policy]
) -> None:
    policy = tiny_policy("lora")
    config = PolicyConfig(max_grad_norm=1e9, layout=layout)
    recorders = [Recorder(policy.trainable), Recorder(policy.trainable)]
    metrics = [
        take_update(
            policy, recorder, [answers(policy, 1.5)], config, DistillationConfig(),
            temperature=1.0, max_new_tokens=2, seed=0, truncation=chosen,
        )
        for recorder, chosen in zip(recorders, (OFF, truncation), strict=True)
    ]  # fmt: skip
    plain, weighted = (recorder.gradients[0] for recorder in recorders)
    assert_same_gradients(weighted, {name: factor * gradient for name, gradient in plain.items()})
    assert metrics[1].importance_weight == pytest.approx(factor, rel=1e-4)
    assert metrics[1].mismatch_mean == pytest.approx(math.log(1.5), rel=1e-3)
