"""The chunked head against the full softmax in float64: values, gradients, and the tensors that it holds."""

from __future__ import annotations

import pytest
import torch
from peak import LiveTensors
from torch import Tensor

from p2o.policy.head import token_logprobs

N, D, V = 23, 16, 301
WIDTH = 64
"""Of the hidden states where memory is counted."""


def inputs(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64) * scale
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    bias = torch.randn(V, generator=g, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=g)
    upstream = torch.randn(N, generator=g, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets, upstream


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logp = torch.log_softmax(logits / temperature, -1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_the_full_softmax(chunk: int, temperature: float, with_bias: bool) -> None:
    hidden, weight, bias, targets, upstream = inputs(torch.float64)
    leaves = [t.requires_grad_() for t in ((hidden, weight, bias) if with_bias else (hidden, weight))]
    used_bias = bias if with_bias else None
    logprobs, entropy = token_logprobs(hidden, weight, used_bias, targets, temperature=temperature, chunk=chunk)
    got = torch.autograd.grad(logprobs, leaves, upstream)
    expected_logprobs, expected_entropy = reference(hidden, weight, used_bias, targets, temperature)
    expected = torch.autograd.grad(expected_logprobs, leaves, upstream)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert not entropy.requires_grad


def test_gradcheck() -> None:
    hidden, weight, bias, targets, _ = inputs(torch.float64)
    args = (hidden[:4].requires_grad_(), weight[:9].requires_grad_(), bias[:9].requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w, b: token_logprobs(h, w, b, targets[:4] % 9, chunk=3)[0], args)


@pytest.mark.parametrize("scale", [0.3, 8.0])
def test_float32_stays_close_for_flat_and_for_peaked_distributions(scale: float) -> None:
    hidden, weight, bias, targets, upstream = inputs(torch.float32, scale)
    logprobs, entropy = token_logprobs(hidden.requires_grad_(), weight, bias, targets, chunk=5)
    (got,) = torch.autograd.grad(logprobs, hidden, upstream.float())
    expected_logprobs, expected_entropy = reference(hidden, weight, bias, targets, 1.0)
    (expected,) = torch.autograd.grad(expected_logprobs, hidden, upstream)
    torch.testing.assert_close(logprobs, expected_logprobs.float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy.detach().float(), rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_gradient_of_a_confident_token_does_not_drown_in_rounding() -> None:
    """p_t = 0.9998: the gradient is 2e-4 of W_t, less than one unit in the last place of bfloat16."""
    weight = torch.zeros(8, D)
    weight[0] = torch.linspace(1, 2, D)
    weight[1] = -weight[0]
    hidden = (weight[:1] * 0.28).requires_grad_()
    targets = torch.zeros(1, dtype=torch.long)
    logprobs, _ = token_logprobs(hidden, weight, None, targets, dtype=torch.bfloat16)
    (got,) = torch.autograd.grad(logprobs.sum(), hidden)
    expected_logprobs, _ = reference(hidden.bfloat16(), weight.bfloat16(), None, targets, 1.0)
    (expected,) = torch.autograd.grad(expected_logprobs.sum(), hidden)
    assert float(expected.abs().max()) < 0.02
    torch.testing.assert_close(got, expected, rtol=0.05, atol=1e-5)


def test_bfloat16_products_with_float32_master_weights() -> None:
    hidden, weight, _, targets, upstream = inputs(torch.float32)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    logprobs, _ = token_logprobs(*leaves, None, targets, chunk=5, dtype=torch.bfloat16)
    assert logprobs.dtype == torch.float32
    got = torch.autograd.grad(logprobs, leaves, upstream.float())
    assert [g.dtype for g in got] == [torch.float32, torch.float32]
    expected_logprobs, _ = reference(hidden, weight, None, targets, 1.0)
    expected = torch.autograd.grad(expected_logprobs, leaves, upstream)
    torch.testing.assert_close(logprobs, expected_logprobs.float(), rtol=0.01, atol=0.1)
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02


def test_certain_and_impossible_targets_stay_finite() -> None:
    hidden = torch.full((2, 1), 500.0, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    logprobs, entropy = token_logprobs(hidden, weight, None, torch.tensor([0, 2]))
    (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert logprobs.tolist() == [0.0, -1000.0]
    assert entropy.tolist() == [0.0, 0.0]
    assert grad.flatten().tolist() == [0.0, -2.0]


def test_no_tokens_and_wrong_shapes() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    logprobs, entropy = token_logprobs(hidden[:0].requires_grad_(), weight, None, targets[:0])
    assert logprobs.shape == entropy.shape == (0,)
    with pytest.raises(ValueError, match=r"targets \[N\]"):
        token_logprobs(hidden, weight, None, targets[:-1])


def tensors_of_the_head(tokens: int, vocabulary: int, chunk: int = 16, train_head: bool = False) -> LiveTensors:
    """Forward and backward."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=g).requires_grad_()
    weight = torch.randn(vocabulary, WIDTH, generator=g).requires_grad_(train_head)
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    with LiveTensors() as tensors:
        token_logprobs(hidden, weight, None, targets, chunk=chunk)[0].sum().backward()
    return tensors


@pytest.mark.parametrize("train_head", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_ever_exists(train_head: bool) -> None:
    tokens, vocabulary, chunk = 512, 4096, 64
    largest = tensors_of_the_head(tokens, vocabulary, chunk, train_head).largest
    assert largest <= 4 * vocabulary * max(chunk, WIDTH), "the logits of a chunk, or W's own gradient"


def test_live_tensors_do_not_grow_with_tokens_nor_with_a_large_vocabulary() -> None:
    """But for what a token keeps of its own: WIDTH numbers for each gradient by the hidden states, and a few more."""
    once = tensors_of_the_head(64, 65536)
    assert once.peak > 16 * 65536 * 4, "the logits of a chunk are counted"
    assert tensors_of_the_head(64, 3 * 65536).peak < 1.1 * once.peak
    more_tokens = 448
    own = more_tokens * 4 * (4 * WIDTH + 8)
    assert tensors_of_the_head(64 + more_tokens, 65536).peak <= once.peak + own
    assert own < 0.05 * once.peak


def test_head_alone_can_be_trained() -> None:
    hidden, weight, _, targets, upstream = inputs(torch.float64)
    logprobs, _ = token_logprobs(hidden, weight.requires_grad_(), None, targets, chunk=5)
    (got,) = torch.autograd.grad(logprobs, weight, upstream)
    (expected,) = torch.autograd.grad(reference(hidden, weight, None, targets, 1.0)[0], weight, upstream)
    torch.testing.assert_close(got, expected)
