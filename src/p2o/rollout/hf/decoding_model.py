"""An inference copy of the policy: the model's own modules and forward pass, with linear layers built for decoding.

The copy of a linear layer with weight W and a LoRA adapter (A, B, scale s) computes [W | sB] [x ; Ax] as one product
in the policy's arithmetic. So the adapter is neither merged into W, where rounding would lose it, nor paid for with
separate products; filling the lower part with zeros gives the reference model from the same weights. Layers that read
the same input (query, key and value; gate and up) are one product too. On a GPU frozen weights stay where they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from p2o.policy.sharding import plain_copy, whole
from p2o.rollout.hf.row_cache import ATTENTION

PACKED_ROWS = 96

Layer = nn.Linear | LoraLinear


@dataclass(frozen=True, slots=True)
class _Weights:
    """A linear layer's ``weight`` [N, K] and ``bias`` [N], and its adapter's ``down`` A [r, K] and ``up`` sB [N, r]."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None


def _base(layer: Layer) -> nn.Linear:
    base: Any = layer if isinstance(layer, nn.Linear) else layer.get_base_layer()
    return base


def _weights(layer: Layer) -> _Weights:
    base = _base(layer)
    if not isinstance(layer, LoraLinear):
        return _Weights(whole(base.weight), None if base.bias is None else whole(base.bias))
    names = layer.active_adapters
    if len(names) != 1 or layer.lora_variant or layer.merged or layer.lora_bias[names[0]]:
        raise TypeError(f"rollout=hf runs one plain, unmerged LoRA adapter per layer, without a bias, not {layer}")
    (name,) = names
    down: Any = layer.lora_A[name]
    up: Any = layer.lora_B[name]
    bias = None if base.bias is None else whole(base.bias)
    return _Weights(whole(base.weight), bias, whole(down.weight), whole(up.weight) * layer.scaling[name])


class _Joint(nn.Module):
    """Several linear layers of one input as one product, with their adapters."""

    def __init__(self, parts: Sequence[_Weights], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.adapter = True
        self.sizes = [len(p.weight) for p in parts]
        downs = [p.down for p in parts if p.down is not None]
        self.rank = sum(map(len, downs))
        self.down = _Product(torch.cat(downs).to(dtype), None) if downs else None
        width = parts[0].weight.shape[1]
        weight = parts[0].weight.new_zeros(sum(self.sizes), width + self.rank, dtype=dtype)
        row, column = 0, width
        for part in parts:
            rows = slice(row, row := row + len(part.weight))
            weight[rows, :width] = part.weight
            if part.up is not None:
                weight[rows, column : (column := column + part.up.shape[1])] = part.up
        biases = [p.bias if p.bias is not None else p.weight.new_zeros(len(p.weight)) for p in parts]
        bias = torch.cat(biases).to(dtype) if any(p.bias is not None for p in parts) else None
        self.product = _Product(weight, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.to(self.dtype)
        if self.down is not None:
            x = torch.cat((x, self.down(x)), -1) if self.adapter else F.pad(x, (0, self.rank))
        return self.product(x).split(self.sizes, -1)


class _Apart(nn.Module):
    """The same with one product per layer, on the weights where they are.

    For frozen weights on a GPU: a copy would take as much memory as the model, and :mod:`p2o.rollout.hf.cuda_graphs`
    makes more but smaller kernels cheap.
    """

    def __init__(self, parts: Sequence[_Weights], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.adapter = True
        self.parts = [(p.weight.detach(), p.bias) for p in parts]
        self.ups = [None if p.up is None else p.up.T.to(dtype) for p in parts]
        downs = [p.down for p in parts if p.down is not None]
        self.down = torch.cat(downs).to(dtype) if downs else None
        self.ranks = [0 if p.down is None else len(p.down) for p in parts]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.to(self.dtype)
        made = [F.linear(x, weight, bias) for weight, bias in self.parts]
        if self.down is None or not self.adapter:
            return tuple(made)
        lows = F.linear(x, self.down).split(self.ranks, -1)
        return tuple(
            y if up is None else torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up).view_as(y)
            for y, low, up in zip(made, lows, self.ups, strict=True)
        )


def _linear(layers: Iterable[Layer], dtype: torch.dtype) -> _Joint | _Apart:
    parts = [_weights(layer) for layer in layers]
    there = all(p.weight.is_cuda and p.weight.dtype is dtype and not p.weight.requires_grad for p in parts)
    return _Apart(parts, dtype) if there else _Joint(parts, dtype)


class _Product:
    """x Wᵀ + b with the weight [N, K] in the layout that is fastest where it lies."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.packed = _can_pack(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def _can_pack(weight: Tensor) -> bool:
    """oneDNN's blocked weight layout spares the product a reordering: 1.05 times faster at 96 rows, 1.6 at 8."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class _Share(nn.Module):
    """Stands for one of several linear layers of one input: the first one asked computes for all."""

    def __init__(self, joint: _Joint | _Apart, index: int, pending: dict[int, Tensor]) -> None:
        super().__init__()
        self.joint = joint
        self.index = index
        self.pending = pending

    def forward(self, x: Tensor) -> Tensor:
        if self.index not in self.pending:
            self.pending.update(enumerate(self.joint(x)))
        return self.pending.pop(self.index)


class _Probe(nn.Module):
    """Stands for a linear layer while the model's wiring is read: records its input, computes nothing."""

    def __init__(self, layer: Layer, seen: list[tuple[Layer, Tensor]]) -> None:
        super().__init__()
        self.layer = layer
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.layer, x))
        return x.new_zeros(*x.shape[:-1], _base(self.layer).out_features)


class Twin:
    """What generates: ``hidden`` runs the backbone over a cache, ``logits`` the head.

    Trained weights are copied when it is built, so it stays at its policy version; frozen weights outside of
    linear layers are shared with ``lm``.
    """

    @torch.no_grad()
    def __init__(self, lm: PreTrainedModel, dtype: torch.dtype) -> None:
        config = copy.copy(lm.config)
        config._attn_implementation = ATTENTION
        backbone = getattr(lm, lm.base_model_prefix)
        layers = list(_linear_layers(backbone))
        seen: list[tuple[Layer, Tensor]] = []
        probed = _clone(backbone, {layer: _Probe(layer, seen) for layer in layers}, config)
        probed(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device), use_cache=False)
        by_input: dict[int, list[Layer]] = {}
        for layer, x in seen:
            by_input.setdefault(id(x), []).append(layer)
        swap: dict[nn.Module, nn.Module] = {}
        self._joints = []
        for group in by_input.values():
            joint = _linear(group, dtype)
            self._joints.append(joint)
            pending: dict[int, Tensor] = {}
            swap.update({layer: _Share(joint, i, pending) for i, layer in enumerate(group)})
        self._backbone = _clone(backbone, swap, config)
        self.key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._head = _linear([lm.get_output_embeddings()], dtype)

    def use_adapter(self, on: bool) -> None:
        """Compute the policy, or with its adapter off the reference model."""
        for joint in self._joints:
            joint.adapter = on

    def hidden(self, **inputs: object) -> Tensor:
        """Last hidden states [R, T, D]."""
        return self._backbone(use_cache=True, **inputs).last_hidden_state

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return self._head(hidden_RD)[0]


def _linear_layers(module: nn.Module) -> Iterator[Layer]:
    """The linear layers below ``module``, an adapted one as a whole."""
    if isinstance(module, Layer):
        yield module
    else:
        for child in module.children():
            yield from _linear_layers(child)


def _clone(module: nn.Module, swap: Mapping[nn.Module, nn.Module], config: PreTrainedConfig) -> nn.Module:
    """The same tree of modules with some swapped; parameters are shared where frozen, copied where trained."""
    if module in swap:
        return swap[module]
    twin = plain_copy(module)
    children = {name: _clone(child, swap, config) for name, child in module.named_children()}
    parameters = {
        n: whole(p.detach()).clone() if p.requires_grad else whole(p)
        for n, p in module._parameters.items()
        if p is not None
    }
    twin.__dict__ |= {"_modules": children, "_parameters": {**module._parameters, **parameters}, "training": False}
    if hasattr(module, "config"):
        twin.__dict__["config"] = config
    return twin
