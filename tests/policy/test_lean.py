"""Lean layers against those of transformers that they replace: the same bits and gradients, fewer bytes kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from p2o.policy.lean import LeanGatedMLP, LeanRMSNorm, keep_less

WIDTH = 48
CONFIG = LlamaConfig(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_attention_heads=3)


def norm(kind: type[nn.Module] = LlamaRMSNorm) -> nn.Module:
    layer = kind(WIDTH)
    nn.init.uniform_(layer.weight, 0.5, 1.5)  # type: ignore[arg-type]
    return layer


def lean(layer: nn.Module) -> nn.Module:
    holder = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    keep_less(holder)
    return holder["layer"]


def passed(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What comes out, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out))
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"out": out.detach(), "x": x.grad, **gradients}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [norm(), LlamaMLP(CONFIG)], ids=["norm", "mlp"])
def test_the_bits_are_those_of_the_layer_that_it_replaces(layer: nn.Module, dtype: torch.dtype) -> None:
    layer = copy.deepcopy(layer).to(dtype)
    replaced = lean(layer)
    assert isinstance(replaced, LeanRMSNorm | LeanGatedMLP)
    x = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, found = passed(layer, x), passed(replaced, x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        tolerance = 0.0 if name in ("out", "x") else 1e-2 if dtype is torch.bfloat16 else 1e-6
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)
    with torch.no_grad():
        assert torch.equal(replaced(x), expected["out"])


def test_under_autocast_a_norm_gives_what_the_products_behind_it_would_make_of_it() -> None:
    layer = norm()
    replaced = lean(layer)
    x = torch.randn(5, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = layer(x), replaced(x)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize("kind", [GemmaRMSNorm, Olmo2RMSNorm])
def test_a_norm_that_computes_otherwise_stays(kind: type[nn.Module]) -> None:
    assert type(lean(norm(kind))) is kind


def test_an_mlp_that_computes_otherwise_stays() -> None:
    class Swapped(LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    class Asking(LlamaMLP):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x * mask)

    assert type(lean(Swapped(CONFIG))) is Swapped
    assert type(lean(Asking(CONFIG))) is Asking


@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_a_model_keeps_its_parameters_and_a_fraction_less(config: type[LlamaConfig | Qwen3Config]) -> None:
    sizes = {"vocab_size": 32, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(
        config(**sizes, num_attention_heads=3, num_key_value_heads=1, head_dim=16), dtype=torch.bfloat16
    )
    ids = torch.arange(20)[None] % 32
    names, kept = list(model.state_dict()), []
    logits = []
    for _ in range(2):
        storages: dict[int, int] = {}

        def pack(t: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            logits.append(model(input_ids=ids, use_cache=False).logits)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(n for where, n in storages.items() if where not in weights))
        keep_less(model)
    assert torch.equal(*logits)
    assert list(model.state_dict()) == names
    assert kept[1] < 0.8 * kept[0]
