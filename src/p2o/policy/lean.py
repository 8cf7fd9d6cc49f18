"""Norms and gated MLPs that keep fewer activations for the backward pass than autograd does.

Between two matrix products a transformer's layer is elementwise, and autograd keeps every intermediate: for an RMS norm
the float32 copy of its input, for a gated MLP the activated gate. Here the norm keeps its input and one scale per
token, the MLP its gate and its up projection, and the backward pass recomputes the rest at a fraction of the products'
cost.

A module is replaced if a small copy of it computes the same bits as its replacement, whatever its class is called; any
other stays as it is. Parameters keep their names and are not copied.

Shapes: D hidden size; leading dimensions are free.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PROJECTIONS: dict[str, nn.Module] = {"gate_proj": nn.Identity(), "up_proj": nn.Softsign(), "down_proj": nn.Tanh()}
"""Children of a gated MLP besides its activation, and what replaces them when it is compared with a lean one."""

PROBE_ED = torch.linspace(-3.0, 2.0, 24).view(3, 8)


class LeanRMSNorm(nn.Module):
    """x / rms(x) · weight, the mean of squares in float32 (Zhang and Sennrich, arXiv 1910.07467).

    Under autocast the norm of a float32 input comes out in autocast's dtype, so that the products that read it keep
    no copies of their own.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        casts = torch.is_autocast_enabled(kind) and x.dtype is torch.float32
        dtype = torch.get_autocast_dtype(kind) if casts else torch.promote_types(x.dtype, self.weight.dtype)
        if not torch.is_grad_enabled():
            return _rms_norm(x, self.weight, self.eps, dtype)[0]
        out: Tensor = _RMSNorm.apply(x, self.weight, self.eps, dtype)
        return out


class LeanGatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), with the projections of the MLP that it replaces."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.gate_proj = parts["gate_proj"]
        self.up_proj = parts["up_proj"]
        self.down_proj = parts["down_proj"]
        self.act_fn = parts["act_fn"]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        gated = _Gate.apply(gate, up, self.act_fn) if torch.is_grad_enabled() else self.act_fn(gate) * up
        out: Tensor = self.down_proj(gated)
        return out


def keep_less(model: nn.Module) -> None:
    """Replace the norms and gated MLPs below ``model`` by lean ones that compute the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            replacement = _replacement(child)
            if replacement is not None:
                setattr(parent, name, replacement.train(child.training))


def _replacement(module: nn.Module) -> nn.Module | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    parts = dict(module.named_children())
    if isinstance(weight, nn.Parameter) and weight.dim() == 1 and isinstance(eps, float):
        small = nn.Parameter(PROBE_ED.mean(0))
        if _same(_with(module, _parameters={"weight": small}), LeanRMSNorm(small, eps)):
            return LeanRMSNorm(weight, eps)
    elif parts.keys() == PROJECTIONS.keys() | {"act_fn"} and not list(parts["act_fn"].parameters()):
        small_parts = parts | PROJECTIONS
        if _same(_with(module, _modules=small_parts), LeanGatedMLP(small_parts)):
            return LeanGatedMLP(parts)
    return None


def _with(module: nn.Module, **changed: object) -> nn.Module:
    small = copy.copy(module)
    small.__dict__ |= changed
    return small


@torch.no_grad()
def _same(module: nn.Module, replacement: nn.Module) -> bool:
    """In both dtypes, since norms that round in another order are the same in float32 only."""
    try:
        return all(
            torch.equal(module.to(dtype)(PROBE_ED.to(dtype)), replacement.to(dtype)(PROBE_ED.to(dtype)))
            for dtype in (torch.float32, torch.bfloat16)
        )
    except (RuntimeError, TypeError, ValueError, AttributeError):  # it needs something other than x
        return False


def _rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The norm, and the scale [..., 1] of each token."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight_D * (wide * scale).to(x.dtype)).to(dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out, scale = _rms_norm(x, weight_D, eps, dtype)
        ctx.save_for_backward(x, weight_D, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x · s and g the gradient at n: dx = s g − s³ x Σ(g x) / D."""
        x, weight_D, scale = ctx.saved_tensors
        wide = x.float()
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * (wide * scale).to(x.dtype)).flatten(0, -2).sum(0).to(weight_D.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_normed = (grad * weight_D).to(x.dtype).float()
            shared = (d_normed * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(-wide.shape[-1])
            d_x = d_normed.mul(scale).add_(wide * shared).to(x.dtype)
        return d_x, d_weight, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: nn.Module) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.act(gate)
        (d_gate,) = torch.autograd.grad(active, gate, grad * up)
        return d_gate, grad * active.detach(), None
