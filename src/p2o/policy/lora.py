"""Low-rank adapters (Hu et al., arXiv 2106.09685), by peft.

An adapted layer computes x Wᵀ + s (x Aᵀ) Bᵀ with W frozen. peft's own layer computes the second term, scales it
and adds it, each a pass over a tensor as wide as the output, and autograd does as much again on the way back. In
:class:`FusedLora` the matrix product that computes the second term adds it to the first.

Shapes: N tokens, K inputs, M outputs, r rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from p2o.config.schema import LoraTuning, ModelConfig
from p2o.policy.builders import ModelError, resolve_model
from p2o.types import derive_seed


def with_adapter(lm: PreTrainedModel, model: ModelConfig, tuning: LoraTuning, seed: int) -> PeftModel:
    """``lm`` with a fresh adapter, its weights frozen. Raises :class:`ModelError` for a target that it lacks."""
    targets = _target_modules(lm, tuning.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.r,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("adapter", seed))
        module = get_peft_model(lm, config, autocast_adapter_dtype=True)
    module.peft_config["default"].base_model_name_or_path = str(resolve_model(model))
    return module.eval()


def _target_modules(lm: PreTrainedModel, names: list[str]) -> str | list[str]:
    """Check the configured names against the model's linear layers (the head cannot carry an adapter)."""
    if names == ["all-linear"]:
        return "all-linear"
    head = lm.get_output_embeddings()
    valid = {n.rsplit(".", 1)[-1] for n, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not head}
    unknown = [n for n in names if n not in valid]
    if unknown or not names:
        raise ModelError(
            f"tuning.target_modules={names}: {unknown or 'nothing'} is not a linear layer of this model; "
            f"choose all-linear or some of {', '.join(sorted(valid))}"
        )
    return list(names)


def fuse_adapter(module: PeftModel) -> PeftModel:
    """Turn the adapted layers of ``module`` into :class:`FusedLora`."""
    for layer in module.modules():
        if type(layer) is LoraLinear:
            layer.__class__ = FusedLora
            # Autocast brings the adapter's weights to the activations' dtype; peft would first copy every activation
            # to float32.
            cast(FusedLora, layer).cast_input_dtype_enabled = False
    return module


class FusedLora(LoraLinear):
    """peft's linear layer with one plain adapter, fused; anything else (dropout, a bias, merged) is left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = cast(nn.Linear, self.get_base_layer())
        names = self.active_adapters
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or self.lora_variant
            or len(names) != 1
            or base.weight.requires_grad
            or self.lora_bias[names[0]]
            or (self.training and not isinstance(self.lora_dropout[names[0]], nn.Identity))
        ):
            return super().forward(x, *args, **kwargs)
        (name,) = names
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Lora.apply(
                x.to(dtype),
                base.weight,
                base.bias,
                self.lora_A[name].weight,
                self.lora_B[name].weight,
                self.scaling[name],
            )
        return out


class _Lora(torch.autograd.Function):
    """In the dtype of ``x``; gradients of A and B in theirs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None, down_rK: Tensor, up_Mr: Tensor, scale: float
    ) -> Tensor:
        x_NK = x.flatten(0, -2)
        low_Nr = x_NK @ down_rK.to(x.dtype).T
        ctx.save_for_backward(x_NK, weight_MK, down_rK, up_Mr, low_Nr)
        ctx.scale = scale
        bias = None if bias_M is None else bias_M.to(x.dtype)
        out_NM = nn.functional.linear(x_NK, weight_MK.to(x.dtype), bias)
        return out_NM.addmm_(low_Nr, (up_Mr * scale).to(x.dtype).T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, weight_MK, down_rK, up_Mr, low_Nr = ctx.saved_tensors
        dtype = x_NK.dtype
        grad_NM = grad.flatten(0, -2)
        d_low_Nr = grad_NM @ (up_Mr * ctx.scale).to(dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x_NK = (grad_NM @ weight_MK.to(dtype)).addmm_(d_low_Nr, down_rK.to(dtype))
            d_x = d_x_NK.view(*grad.shape[:-1], -1)
        d_down_rK = (d_low_Nr.T @ x_NK).to(down_rK.dtype)
        d_up_Mr = (grad_NM.T @ low_Nr).to(up_Mr.dtype).mul_(ctx.scale)
        return d_x, None, None, d_down_rK, d_up_Mr, None
