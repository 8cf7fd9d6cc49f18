"""Attention over segments against a dense masked softmax: values, gradients, and what is never computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from test_layout import random_samples, visible
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from p2o.policy import attention
from p2o.policy.attention import build_blocks, segment_attention
from p2o.policy.layout import LAYOUTS, MicroBatch, Sample, Segment, micro_batches
from p2o.policy.model import Policy

HEADS, KEY_HEADS, SIZE = 4, 2, 3
EVERY = pytest.mark.parametrize("layout", LAYOUTS)


def inputs(batch: MicroBatch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows, width = batch.input_ids.shape
    shapes = [(rows, heads, width, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def dense(query: Tensor, key: Tensor, value: Tensor, batch: MicroBatch, scaling: float) -> Tensor:
    """Every row of the flattened micro-batch against every other, those that it does not see hidden; [B, T, H, D]."""
    rows, width = batch.input_ids.shape
    total = rows * width
    sees = torch.zeros(total, total, dtype=torch.bool)
    for row in batch.padding_mask.flatten().nonzero()[:, 0].tolist():
        sees[row, visible(batch, row)] = True
    q, k, v = (t.transpose(1, 2).flatten(0, 1).transpose(0, 1) for t in (query, key, value))
    k, v = (t.repeat_interleave(HEADS // KEY_HEADS, dim=0) for t in (k, v))
    scores = (q @ k.mT * scaling).masked_fill(~sees, -torch.inf)
    probs = torch.softmax(scores, -1).nan_to_num(0.0)
    return (probs @ v).transpose(0, 1).reshape(rows, width, HEADS, SIZE)


@EVERY
@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("similar", [attention.SIMILAR, attention.GPU_SIMILAR])
def test_values_and_gradients_are_those_of_dense_attention(
    layout: str, budget: int, seed: int, similar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SIMILAR", similar)
    for batch in micro_batches(random_samples(seed), layout, budget):
        leaves = inputs(batch)
        blocks = build_blocks(batch.segments, batch.input_ids.numel())
        got, expected = segment_attention(*leaves, blocks, 0.7), dense(*leaves, batch, 0.7)
        upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
        upstream[batch.padding_mask == 0] = 0  # what padding says is never read
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        for a, b in zip(
            torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_bfloat16_is_as_exact_as_its_inputs() -> None:
    (batch,) = micro_batches(random_samples(0), "shared_prefix", 10_000)
    leaves = inputs(batch, torch.bfloat16)
    got = segment_attention(*leaves, build_blocks(batch.segments, batch.input_ids.numel()), 0.7)
    expected = dense(*(t.double() for t in leaves), batch, 0.7)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.02)


def test_blocks_hold_every_query_once_and_the_keys_it_sees() -> None:
    (batch,) = micro_batches(random_samples(2), "shared_prefix", 10_000)
    rows = batch.input_ids.numel()
    queried: list[int] = []
    for block in build_blocks(batch.segments, rows):
        for s, c in (block.queries < rows).nonzero().tolist():
            seen = block.keys[s][block.mask[s, 0, 0, c] == 0].tolist()
            queried.append(int(block.queries[s, c]))
            assert seen == visible(batch, queried[-1])
    assert sorted(queried) == list(range(rows))


class _LargestTensor(TorchDispatchMode):
    """The elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def test_no_tensor_of_tokens_by_tokens_exists() -> None:
    segments = [Segment(16 * i, 16) for i in range(64)]
    tokens = 64 * 16
    leaves = [torch.randn(1, heads, tokens, SIZE, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    with _LargestTensor() as largest:
        segment_attention(*leaves, build_blocks(segments, tokens), 1.0).sum().backward()
    assert largest.elements <= 64 * 16 * 16 * HEADS
    assert largest.elements < tokens**2 / 10


@EVERY
def test_a_models_hidden_states_do_not_depend_on_the_layout(layout: str, tiny_policy: Callable[..., Policy]) -> None:
    policy = tiny_policy()
    samples = random_samples(3)

    def predictors(which: str) -> Tensor:
        states: list[Tensor] = [torch.empty(0)] * sum(len(s.completion) for s in samples)
        with torch.no_grad():
            for batch in micro_batches(samples, which, 60):
                blocks = build_blocks(batch.segments, batch.input_ids.numel())
                hidden = policy.hidden_states(batch.input_ids, batch.position_ids, blocks).flatten(0, 1)
                for token, state in zip(batch.tokens.tolist(), hidden[batch.predictors], strict=True):
                    states[token] = state
        return torch.stack(states)

    torch.testing.assert_close(predictors(layout), alone(policy, samples), rtol=1e-4, atol=1e-5)


def alone(policy: Policy, samples: Sequence[Sample]) -> Tensor:
    """Every sample in a forward pass of its own, under transformers' own attention."""
    states = []
    with torch.no_grad():
        for sample in samples:
            ids = torch.tensor([[*sample.prompt, *sample.completion[:-1]]])
            hidden = policy.hidden_states(ids, torch.arange(ids.shape[1])[None], None)[0]
            states.append(hidden[len(sample.prompt) - 1 :])
    return torch.cat(states)
