"""Memory that runs out, with the allocators' own errors: the step is repeated in smaller parts, to the same end."""

from __future__ import annotations

import logging
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from groups import LETTERS, Recorder, assert_same_gradients, group, mixed_groups, rollout, take_update
from torch import Tensor, nn

from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.layout import LAYOUTS
from p2o.policy.memory import KERNELS, OutOfMemoryError, keep_fewer_kernels
from p2o.policy.model import Policy

Tiny = Callable[..., Policy]
MASK = DistillationConfig(kind="mask", low=0.6, high=1.7)


def torch_allocator() -> None:
    torch.empty(2**50)


def python_allocator() -> None:
    bytearray(2**60)


def cuda_allocator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run(
    policy: Policy, tokens: int, layout: str = "shared_prefix", updates: int = 1, **more: object
) -> tuple[Recorder, SimpleNamespace]:
    config = PolicyConfig(layout=layout, micro_batch_tokens=tokens, updates_per_round=updates)
    recorder = Recorder(policy.trainable, learning_rate=0.1)
    metrics = take_update(policy, recorder, mixed_groups(), config, MASK, **more)
    return recorder, metrics


def forbid(policy: Policy, more_than: int, allocate: Callable[[], None], graded: bool = True) -> list[int]:
    """Let passes (with gradient, or without) of ``more_than`` tokens fail; the list collects the sizes of all such."""
    seen: list[int] = []

    def check(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Tensor], output: object) -> None:
        if torch.is_grad_enabled() is graded:
            seen.append(kwargs["input_ids"].numel())
            if seen[-1] > more_than:
                allocate()

    policy.causal_lm.model.register_forward_hook(check, with_kwargs=True)
    return seen


@pytest.mark.parametrize("allocate", [torch_allocator, python_allocator, cuda_allocator])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_step_is_repeated_with_half_the_tokens_and_gives_the_same(
    layout: str, allocate: Callable[[], None], tiny_policy: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    expected, undisturbed = run(tiny_policy(), 2048, layout)
    policy = tiny_policy()
    seen = forbid(policy, 60, allocate)
    with caplog.at_level(logging.WARNING):
        recorder, metrics = run(policy, 2048, layout)
    assert seen[0] > 60, "all in one at first"
    assert seen[-1] <= 60, "in parts that fit at last"
    assert metrics.micro_batch_tokens < undisturbed.micro_batch_tokens
    assert "does not fit into memory: the step is repeated with policy.micro_batch_tokens=" in caplog.text
    assert len(recorder.gradients) == 1
    assert_same_gradients(recorder.gradients[0], expected.gradients[0], tolerance=2e-5)
    for name in ("loss", "grad_norm", "entropy", "masked_fraction", "trained_tokens", "trained_samples"):
        assert getattr(metrics, name) == pytest.approx(getattr(undisturbed, name), rel=1e-4, abs=1e-6), name


def test_what_a_failed_attempt_had_added_up_is_forgotten(tiny_policy: Tiny) -> None:
    """The second micro-batch fails after its backward pass: both have left gradients."""
    expected, _ = run(tiny_policy(), 40)
    calls: list[int] = []

    def backward(loss: Tensor) -> None:
        loss.backward()
        calls.append(1)
        if len(calls) == 2:
            torch_allocator()

    done: list[tuple[int, int]] = []
    recorder, metrics = run(tiny_policy(), 40, backward=backward, progress=lambda d, t: done.append((d, t)))
    assert len(calls) > 3
    assert_same_gradients(recorder.gradients[0], expected.gradients[0], tolerance=2e-5)
    assert done[-1] == (metrics.trained_tokens, metrics.trained_tokens)


def test_a_pass_without_gradient_is_repeated_too(tiny_policy: Tiny) -> None:
    expected, _ = run(tiny_policy(), 2048, updates=2)
    policy = tiny_policy()
    seen = forbid(policy, 20, torch_allocator, graded=False)
    recorder, metrics = run(policy, 2048, updates=2)
    assert seen[0] > 20
    assert metrics.micro_batch_tokens <= 20
    for got, other in zip(recorder.gradients, expected.gradients, strict=True):
        assert_same_gradients(got, other, tolerance=1e-4)


def test_the_lower_budget_is_kept_for_the_steps_that_follow(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    seen = forbid(policy, 25, torch_allocator)
    _, metrics = run(policy, 2048, updates=2)
    first_fit = next(i for i, tokens in enumerate(seen) if tokens <= 25)
    assert max(seen[first_fit:]) <= metrics.micro_batch_tokens <= 25
    assert len(seen) > first_fit + 3, "both steps are in many parts"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_sequence_that_does_not_fit_ends_it(layout: str, tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    seen = forbid(policy, 10, torch_allocator)
    with pytest.raises(OutOfMemoryError, match=r"a single sequence of \d+ tokens: lower rollout\.max_new_tokens"):
        run(policy, 2048, layout)
    assert len(seen) < 12, "no endless halving"


def test_other_errors_are_not_taken_for_a_shortage(tiny_policy: Tiny) -> None:
    policy = tiny_policy()

    def fail() -> None:
        torch.ones(2, 3) @ torch.ones(2, 3)

    seen = forbid(policy, 0, fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(policy, 2048)
    assert len(seen) == 1


@contextmanager
def little_memory_left(mebibytes: int) -> Iterator[None]:
    """The operating system refuses this process more than ``mebibytes`` of further address space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is Linux's")
def test_memory_that_the_operating_system_refuses(tiny_policy: Tiny) -> None:
    """10,000 tokens in one go need far more than the 64 MiB that are left: activations 51, attention 70."""
    policy = tiny_policy()
    draw = random.Random(0)
    prompt = tuple(draw.choices(LETTERS, k=40))
    answers = [tuple(draw.choices(LETTERS, k=400 - i)) for i in range(24)]
    long = group([rollout(float(i % 3 == 0), prompt=prompt, tokens=t) for i, t in enumerate(answers)], "q", prompt)

    def step(tokens: int) -> tuple[Recorder, SimpleNamespace]:
        recorder = Recorder(policy.trainable)
        config = PolicyConfig(micro_batch_tokens=tokens, layout="packed", head_chunk_tokens=32)
        sampling = {"temperature": 1.0, "max_new_tokens": 400}
        return recorder, take_update(policy, recorder, [long], config, DistillationConfig(), seed=0, **sampling)

    expected, _ = step(1024)
    with little_memory_left(64):
        recorder, metrics = step(16384)
    assert metrics.micro_batch_tokens < 10_000
    assert metrics.steps == 1
    assert_same_gradients(recorder.gradients[0], expected.gradients[0])


CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_fewer_kernels_are_kept_unless_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {CAPACITIES[1]: "1024"})
    keep_fewer_kernels()
    assert [os.environ[name] for name in CAPACITIES] == [str(KERNELS), "1024"]
    assert KERNELS < 1024


KERNELS_OF_MANY_SHAPES = """
from pathlib import Path
from types import SimpleNamespace
import torch
from p2o.policy.memory import keep_fewer_kernels

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

keep_fewer_kernels()
weight = torch.ones(64, 64, dtype=torch.bfloat16)
before = 0.0
for rows in range(2, 600):
    torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
    before = before or resident()
print(resident() - before)
"""


def kernels_mib(**environment: str) -> float:
    variables = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    command = [sys.executable, "-c", KERNELS_OF_MANY_SHAPES]
    return float(subprocess.run(command, env=variables | environment, check=True, capture_output=True).stdout)


@pytest.mark.soak
@pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor's products of bfloat16 are not oneDNN's",
)
def test_kernels_of_shapes_that_never_come_again_are_not_kept_unless_the_environment_says_so() -> None:
    ours = kernels_mib()
    everything = kernels_mib(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert everything > 100
    assert ours < 0.7 * everything
