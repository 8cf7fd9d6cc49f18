"""Drawing tokens from logits: one pass over the vocabulary, one uniform number per row.

Shapes: R rows, V vocabulary (padded to whole blocks), B blocks of the vocabulary. A token is found by inverting the
cumulative distribution in two levels, over the blocks and inside the chosen block, so that the vocabulary is neither
sorted nor summed token by token. All is float32 and done a few rows at a time, in scratch memory that fits the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2o.types import SamplingParams

BLOCK = 256
CPU_ROWS_AT_ONCE = 16


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), float32 [len(seeds), count]; row i depends on ``seeds[i]`` alone."""
    out = torch.empty(len(seeds), count)
    for row, seed in zip(out, seeds, strict=True):
        torch.rand(count, generator=torch.Generator().manual_seed(seed), out=row)
    return out


def draw(logits_RV: Tensor, uniforms_R: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability under the sampling distribution: int64 [R], float32 [R].

    The distribution is softmax(logits / temperature), cut to the smallest set of tokens that holds ``top_p`` of the
    mass. Temperature 0 takes the likeliest token and reports its log-probability at temperature 1.
    """
    rows, vocab = logits_RV.shape
    size = min(rows, CPU_ROWS_AT_ONCE) if logits_RV.device.type == "cpu" else rows
    scratch_RV = torch.empty(size, -(-vocab // BLOCK) * BLOCK, device=logits_RV.device)
    tokens, logprobs = [], []
    for logits, u_R in zip(logits_RV.split(size), uniforms_R.split(size), strict=True):
        scores_RV = scratch_RV[: len(logits)]
        scores_RV[:, :vocab].copy_(logits)
        scores_RV[:, vocab:].fill_(float("-inf"))
        token_R, logprob_R = _draw(scores_RV, u_R, sampling)
        tokens.append(token_R)
        logprobs.append(logprob_R)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(scores_RV: Tensor, u_R: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """``scores_RV`` is overwritten by unnormalised probabilities, the largest of which is 1."""
    if sampling.temperature not in (0.0, 1.0):
        scores_RV.div_(sampling.temperature)
    scores_RBV = scores_RV.unflatten(1, (-1, BLOCK))
    best_R1, best_block_R1 = scores_RBV.amax(-1).max(-1, keepdim=True)
    if sampling.temperature == 0:
        token_R1 = best_block_R1 * BLOCK + _pick(scores_RBV, best_block_R1).argmax(-1, keepdim=True)
        return token_R1[:, 0], -scores_RV.sub_(best_R1).exp_().sum(-1).log()
    scores_RV.sub_(best_R1).exp_()
    if sampling.top_p < 1:
        return _draw_top_p(scores_RV, u_R, sampling.top_p)
    mass_RB = scores_RBV.sum(-1)
    cumulative_RB = mass_RB.cumsum(-1)
    total_R1 = cumulative_RB[:, -1:]
    target_R1 = u_R[:, None] * total_R1
    block_R1 = _first_above(cumulative_RB, target_R1)
    target_R1 = target_R1 - (cumulative_RB.gather(1, block_R1) - mass_RB.gather(1, block_R1))
    token_R1 = block_R1 * BLOCK + _first_above(_pick(scores_RBV, block_R1).cumsum(-1), target_R1)
    return token_R1[:, 0], (scores_RV.gather(1, token_R1) / total_R1).log()[:, 0]


def _draw_top_p(weights_RV: Tensor, u_R: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The slower way: a sort, so that the tail can be cut. The cut distribution is renormalised."""
    sorted_RV, order_RV = weights_RV.sort(-1, descending=True)
    cumulative_RV = sorted_RV.cumsum(-1)
    before_RV = cumulative_RV - sorted_RV
    sorted_RV = sorted_RV.masked_fill(before_RV >= top_p * cumulative_RV[:, -1:], 0.0)
    cumulative_RV = sorted_RV.cumsum(-1)
    total_R1 = cumulative_RV[:, -1:]
    rank_R1 = _first_above(cumulative_RV, u_R[:, None] * total_R1)
    return order_RV.gather(1, rank_R1)[:, 0], (sorted_RV.gather(1, rank_R1) / total_R1).log()[:, 0]


def _first_above(cumulative_RN: Tensor, target_R1: Tensor) -> Tensor:
    """Index [R, 1] of the entry that the target in [0, total) falls into; rounding never selects one without mass."""
    last_R1 = torch.searchsorted(cumulative_RN, cumulative_RN[:, -1:].contiguous())
    return torch.searchsorted(cumulative_RN, target_R1.clamp(min=0), right=True).minimum(last_R1)


def _pick(values_RBV: Tensor, block_R1: Tensor) -> Tensor:
    """The chosen block of each row, [R, BLOCK]."""
    return values_RBV[torch.arange(len(values_RBV), device=values_RBV.device), block_R1[:, 0]]
