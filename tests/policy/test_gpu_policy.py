"""What the CPU's tests promise holds on a GPU too: the gradient of a step, and what the built-in engine samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from groups import Recorder, assert_same_gradients, mixed_groups, take_update

from p2o.config.schema import DistillationConfig, HfRollout, PolicyConfig
from p2o.policy.layout import LAYOUTS
from p2o.policy.model import Policy
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.types import Generation, Prompt, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

Tiny = Callable[..., Policy]
KINDS = pytest.mark.parametrize("kind", ["lora", "full"])


def on_gpu(policy: Policy) -> Policy:
    policy.module.to("cuda")  # type: ignore[arg-type]
    return policy


def gradients(policy: Policy, layout: str) -> dict[str, torch.Tensor]:
    recorder = Recorder(policy.trainable)
    config = PolicyConfig(layout=layout, max_grad_norm=1e9, micro_batch_tokens=70, head_chunk_tokens=7)
    take_update(policy, recorder, mixed_groups(), config, DistillationConfig())
    return {name: gradient.cpu() for name, gradient in recorder.gradients[0].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@KINDS
def test_a_step_is_that_of_the_cpu(kind: str, layout: str, tiny_policy: Tiny) -> None:
    expected = gradients(tiny_policy(kind), layout)
    assert_same_gradients(gradients(on_gpu(tiny_policy(kind)), layout), expected)


def generate(policy: Policy, temperature: float, reference: bool = False) -> list[Generation]:
    engine = HfEngine(policy, HfRollout(max_rows=3))
    engine.sync(0)
    prompts = [Prompt(tuple(range(97, 97 + length)), seed) for seed, length in enumerate((9, 2, 5, 9, 17))]
    return engine.generate(prompts, SamplingParams(temperature, 20), version=0, reference=reference)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("reference", [False, True])
@KINDS
def test_samples_are_those_of_the_cpu(kind: str, reference: bool, temperature: float, tiny_policy: Tiny) -> None:
    """Tokens may part where rounding decides; most do not."""
    expected = generate(tiny_policy(kind), temperature, reference)
    made = generate(on_gpu(tiny_policy(kind)), temperature, reference)
    same = [(a, b) for a, b in zip(made, expected, strict=True) if a.tokens == b.tokens]
    assert len(same) >= 4
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
