"""Each optimisation can be turned off, and then changes nothing but the rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import Recorder, assert_same_gradients, mixed_groups, take_update
from torch import Tensor

from p2o.config.schema import DistillationConfig, LoraTuning, PolicyConfig, RandomModel
from p2o.policy.lean import LeanRMSNorm
from p2o.policy.lora import FusedLora
from p2o.policy.model import Policy, load_policy


def gradients(policy: Policy) -> dict[str, Tensor]:
    recorder = Recorder(policy.trainable)
    take_update(policy, recorder, mixed_groups(), PolicyConfig(max_grad_norm=1e9), DistillationConfig(kind="replace"))
    return recorder.gradients[0]


def has(policy: Policy, kind: type) -> bool:
    return any(isinstance(module, kind) for module in policy.module.modules())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_lean_layers(tuning: str, tiny_policy: Callable[..., Policy]) -> None:
    lean, plain = tiny_policy(tuning), tiny_policy(tuning, lean_layers=False)
    assert (has(lean, LeanRMSNorm), has(plain, LeanRMSNorm)) == (True, False)
    assert_same_gradients(gradients(plain), gradients(lean))


def test_sparse_embedding(tiny_policy: Callable[..., Policy]) -> None:
    sparse, dense = tiny_policy("full"), tiny_policy("full", sparse_embedding=False)
    embeddings: list[Any] = [policy.causal_lm.get_input_embeddings() for policy in (sparse, dense)]
    assert [embedding.sparse for embedding in embeddings] == [True, False]
    assert_same_gradients(gradients(dense), gradients(sparse))


def test_fused_lora(tiny_model: Path) -> None:
    made = []
    for fused in (True, False):
        model = RandomModel(path=str(tiny_model), dtype="float32")
        policy = load_policy(model, LoraTuning(r=4), seed=0, fused_lora=fused)
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
        made.append(policy)
    assert [has(policy, FusedLora) for policy in made] == [True, False]
    assert_same_gradients(gradients(made[1]), gradients(made[0]))
