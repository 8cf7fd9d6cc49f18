"""The fused adapted layer against peft's own: values, gradients, and what it leaves to peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from p2o.policy.lora import FusedLora, fuse_adapter

TOKENS, INPUTS, OUTPUTS = 37, 24, 40


class Net(nn.Module):
    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def adapted(
    *, bias: bool = True, dtype: torch.dtype = torch.float32, dropout: float = 0.0, lora_bias: bool = False
) -> tuple[Any, Any]:
    """The same layer as peft computes it and fused, with an adapter that says something."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["layer"], lora_dropout=dropout, lora_bias=lora_bias)
    plain = get_peft_model(Net(bias, dtype), config)  # type: ignore[arg-type]
    layer = plain.base_model.model.layer
    for parameter in layer.lora_B["default"].parameters():
        nn.init.normal_(parameter)
    fused = copy.deepcopy(plain)
    fuse_adapter(fused)
    assert type(layer) is LoraLinear
    assert type(fused.base_model.model.layer) is FusedLora
    return plain, fused


def passed(net: Any, x: Tensor, autocast: bool) -> dict[str, Tensor]:
    """What comes out, and the gradients of the input and of every trained parameter."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(x)
    out.backward(torch.linspace(-1.0, 1.0, out.numel()).view_as(out).to(out.dtype))
    assert x.grad is not None
    made = {"out": out.detach(), "x": x.grad}
    made |= {n.replace(".default", ""): p.grad for n, p in net.named_parameters() if p.requires_grad}
    assert len(made) == 4
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(TOKENS,), (3, TOKENS)])
def test_values_and_gradients_are_pefts(bias: bool, shape: tuple[int, ...]) -> None:
    plain, fused = adapted(bias=bias, dtype=torch.float64)
    x = torch.randn(*shape, INPUTS, dtype=torch.float64)
    expected, found = passed(plain, x, autocast=False), passed(fused, x, autocast=False)
    for name, value in expected.items():
        assert found[name].dtype is value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_in_bfloat16_it_is_no_further_from_the_truth_than_peft() -> None:
    plain, fused = adapted(dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).double()
    x = torch.randn(TOKENS, INPUTS).to(torch.bfloat16)
    truth = passed(exact, x.double(), autocast=False)
    for name, value in passed(plain, x, autocast=True).items():
        found = passed(fused, x, autocast=True)[name]
        assert found.dtype is value.dtype
        error, theirs = (float((t.double() - truth[name]).norm() / truth[name].norm()) for t in (found, value))
        assert error < max(1.1 * theirs, 4e-3), name


def leave(net: Any) -> Any:
    return net


def disable(net: Any) -> Any:
    net.base_model.disable_adapter_layers()
    return net


def merge(net: Any) -> Any:
    net.base_model.merge_adapter()
    return net


def evaluate(net: Any) -> Any:
    return net.eval()


@pytest.mark.parametrize(
    ("special", "change"),
    [({"dropout": 0.5}, leave), ({"dropout": 0.5}, evaluate), ({"lora_bias": True}, leave), ({}, disable), ({}, merge)],
    ids=["dropout", "evaluated", "bias", "disabled", "merged"],
)
def test_dropout_a_bias_and_absent_or_merged_adapters_are_as_peft_has_them(
    special: dict[str, Any], change: Callable[[Any], Any]
) -> None:
    plain, fused = (change(net) for net in adapted(**special))
    x = torch.randn(TOKENS, INPUTS)
    made = []
    for net in (plain, fused):
        torch.manual_seed(3)
        made.append(net(x))
    torch.testing.assert_close(*made)
