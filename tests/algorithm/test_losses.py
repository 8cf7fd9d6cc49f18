"""The clipped loss by hand: values, gradients and what counts as clipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p2o.algorithm.losses import MAX_LOG_RATIO, PRESETS, clipped_loss


def one(ratio: float, advantage: float, *, dual_clip: float = 3.0) -> tuple[float, float, bool]:
    """Loss, its derivative by the new log-prob, and whether the clip decided."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    loss, metrics = clipped_loss(
        new, old, torch.tensor([advantage], dtype=torch.float64), clip_low=0.2, clip_high=0.3, dual_clip=dual_clip
    )
    loss.sum().backward()
    assert new.grad is not None
    assert float(metrics["mean_ratio"]) == pytest.approx(ratio)
    return float(loss.detach()), float(new.grad), bool(metrics["clip_fraction"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.25, 2.0, -2.5, -2.5, False),  # below 1 + 0.3
        (1.5, 2.0, -2.6, 0.0, True),  # above it: −A · 1.3
        (0.5, 2.0, -1.0, -1.0, False),  # a good token that became rarer is never clipped
        (0.9, -2.0, 1.8, 1.8, False),  # above 1 − 0.2
        (0.5, -2.0, 1.6, 0.0, True),  # below it: −A · 0.8
        (2.0, -2.0, 4.0, 4.0, False),  # a bad token that became likelier, under the dual clip
        (4.0, -2.0, 6.0, 0.0, True),  # −A · 3
        (4.0, 2.0, -2.6, 0.0, True),  # the dual clip is for negative advantages only
        (0.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_by_hand(ratio: float, advantage: float, loss: float, slope: float, clipped: bool) -> None:
    got = one(ratio, advantage)
    assert got[:2] == pytest.approx((loss, slope))
    assert got[2] is clipped


def test_zero_leaves_the_dual_clip_out() -> None:
    assert one(4.0, -2.0, dual_clip=0.0) == (pytest.approx(8.0), pytest.approx(8.0), False)


def test_on_policy_the_gradient_is_that_of_the_advantage_times_the_log_prob() -> None:
    new = torch.tensor([-0.5, -7.0, -0.01], requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0])
    loss, metrics = clipped_loss(new, new.detach(), advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    loss.sum().backward()
    assert new.grad is not None
    assert torch.equal(new.grad, -advantages)
    assert torch.equal(metrics["mean_ratio"], torch.ones(3))
    assert not metrics["clip_fraction"].any()


@pytest.mark.parametrize("gap", [200.0, -200.0, math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dual_clip", [3.0, 0.0])
def test_a_huge_ratio_gives_finite_numbers(gap: float, advantage: float, dual_clip: float) -> None:
    new = torch.tensor([-1.0], requires_grad=True)
    loss, metrics = clipped_loss(
        new, new.detach() - gap, torch.tensor([advantage]), clip_low=0.2, clip_high=0.2, dual_clip=dual_clip
    )
    loss.sum().backward()
    found: list[Tensor] = [loss, metrics["mean_ratio"]]
    assert new.grad is not None
    assert all(torch.isfinite(t).all() for t in [*found, new.grad])
    assert float(metrics["mean_ratio"]) <= math.exp(MAX_LOG_RATIO) * 1.001


def test_presets() -> None:
    assert [(name, p.scale_by_std, p.per_token) for name, p in PRESETS.items()] == [
        ("grpo", True, True),
        ("dr_grpo", False, False),
        ("dapo", True, True),
    ]
