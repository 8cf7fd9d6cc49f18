"""Drawing tokens: the distribution, its log-probabilities, and every edge that rounding could fall over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2o.rollout.hf.token_sampling import BLOCK, draw, uniforms
from p2o.types import SamplingParams

ALL_BUT_ONE = 1 - 2**-24
"""The largest float32 below 1."""


def sample(logits_V: Tensor, u: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    return draw(logits_V.expand(len(u), -1), u, SamplingParams(temperature, 1, top_p))


def chi_square(tokens: Tensor, expected_V: Tensor) -> float:
    """Pearson's statistic over the tokens that can occur."""
    counts_V = torch.bincount(tokens, minlength=len(expected_V)).double()
    possible = expected_V > 0
    assert counts_V[~possible].sum() == 0
    means_V = expected_V[possible].double() * len(tokens)
    return float(((counts_V[possible] - means_V) ** 2 / means_V).sum())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.0])
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    tokens, _ = sample(logits_V, u, temperature)
    # 99.9 % point of chi-square with 7 degrees of freedom
    assert chi_square(tokens, (logits_V / temperature).softmax(-1)) < 24.3


def test_top_p_cuts_the_tail_and_renormalises() -> None:
    probabilities_V = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample(probabilities_V.log(), u, top_p=0.8)
    cut_V = torch.tensor([0.0, 0.4, 0.0, 0.3, 0.15]) / 0.85
    assert chi_square(tokens, cut_V) < 13.8  # 99.9 %, 2 degrees of freedom
    torch.testing.assert_close(logprobs, cut_V.log()[tokens])


@pytest.mark.parametrize("vocab", [5, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_token_and_logprob_are_those_of_the_inverted_distribution(
    vocab: int, dtype: torch.dtype, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits_RV = (3 * torch.randn(50, vocab, generator=generator)).to(dtype)
    u_R = torch.rand(50, generator=generator)
    tokens_R, logprobs_R = draw(logits_RV, u_R, SamplingParams(temperature, 1))
    reference_RV = (logits_RV.double() / temperature).log_softmax(-1)
    torch.testing.assert_close(
        logprobs_R.double(), reference_RV.gather(1, tokens_R[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )
    upper_R = reference_RV.exp().cumsum(-1).gather(1, tokens_R[:, None])[:, 0]
    lower_R = upper_R - logprobs_R.double().exp()
    assert (u_R >= lower_R - 1e-5).all()
    assert (u_R <= upper_R + 1e-5).all()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("vocab", [4, BLOCK + 3, 1000])
def test_no_rounding_selects_an_impossible_token(vocab: int, top_p: float) -> None:
    """The first and the last uniform number, with impossible tokens at both ends and in between."""
    logits_V = torch.full((vocab,), float("-inf"))
    possible = [1, vocab // 2]
    logits_V[possible] = torch.tensor([0.3, 0.1])
    tokens, logprobs = sample(logits_V, torch.tensor([0.0, ALL_BUT_ONE]), top_p=top_p)
    assert tokens.tolist() == possible
    torch.testing.assert_close(logprobs, logits_V.log_softmax(-1)[possible])


def test_greedy_takes_the_first_best_and_reports_temperature_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(40, 700, generator=generator) - 9
    logits_RV[3, 600] = logits_RV[3, 20] = 5.0
    tokens_R, logprobs_R = draw(logits_RV, torch.zeros(40), SamplingParams(0.0, 1))
    assert torch.equal(tokens_R, logits_RV.argmax(-1))
    torch.testing.assert_close(logprobs_R, logits_RV.log_softmax(-1).gather(1, tokens_R[:, None])[:, 0])


def test_uniform_numbers_depend_on_their_own_seed_alone() -> None:
    table = uniforms([7, 2**62, 8], 5)
    assert table.shape == (3, 5)
    assert torch.equal(uniforms([8, 7], 5), table[[2, 0]])
    assert len(set(table.flatten().tolist())) == 15
    assert ((table >= 0) & (table < 1)).all()
