"""Attention over segments: only the work that a tree layout needs, without a dense mask.

Each segment's queries meet its prefix's keys and its own, in small padded blocks of similar segments; nothing is
computed between tokens that do not see each other. Probabilities are recomputed in the backward pass, so no
[T, T] tensor survives the forward pass. Queries of one key head are folded into the rows of one matrix product.

Registered with transformers as ``p2o_segments``: a forward pass that is given ``blocks`` uses it, any other falls
back to transformers' own SDPA.

Shapes: H query heads, G query heads per key head, E = H / G key heads, D head size, S segments of a block, C their
queries, L their keys, R tokens of a micro-batch (B * T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from p2o.policy.layout import Segment

NAME = "p2o_segments"

SIMILAR = 0.7
"""Segments share a block while the shorter one's queries and keys are at least this share of the longest's."""
GPU_SIMILAR = 0.3
"""On a GPU a few blocks with some padding are launched faster than many without."""


@dataclass(frozen=True, slots=True)
class Block:
    """Segments of similar size. Padded queries point at row R, padded keys at row 0 and are hidden by ``mask``."""

    queries: Tensor
    """[S, C] row of each query."""
    keys: Tensor
    """[S, L] row of each key."""
    mask: Tensor
    """[S, 1, 1, C, L] float32, −inf where a query may not see a key (adding is several times faster than filling)."""


def build_blocks(segments: Sequence[Segment], rows: int, device: torch.device | str = "cpu") -> tuple[Block, ...]:
    """Gather ``segments`` of a micro-batch of R = ``rows`` tokens into blocks of similar size, on ``device``."""
    similarity = GPU_SIMILAR if torch.device(device).type == "cuda" else SIMILAR
    pending = sorted(segments, key=lambda s: (-s.length, -s.keys, s.start))
    blocks: list[Block] = []
    while pending:
        longest = pending[0]
        similar = [
            s
            for s in pending
            if s.length >= similarity * longest.length
            and similarity * longest.keys <= s.keys <= longest.keys / similarity
        ]
        chosen = {id(s) for s in similar}
        pending = [s for s in pending if id(s) not in chosen]
        blocks.append(_build_block(similar, rows, device))
    return tuple(blocks)


def _build_block(segments: Sequence[Segment], rows: int, device: torch.device | str) -> Block:
    columns = torch.tensor([(s.start, s.length, s.prefix_start, s.prefix_length, s.keys) for s in segments])
    start, length, prefix_start, prefix_length, keys = columns.T[:, :, None]
    c = torch.arange(int(length.max()))
    j = torch.arange(int(keys.max()))
    queries_SC = torch.where(c < length, start + c, rows)
    own_SL = start + j - prefix_length
    keys_SL = torch.where(j < prefix_length, prefix_start + j, torch.where(j < keys, own_SL, 0))
    hidden_SCL = j[None, None, :] > c[None, :, None] + prefix_length[:, :, None]
    mask = torch.zeros(hidden_SCL.shape).masked_fill_(hidden_SCL, float("-inf"))
    return Block(queries_SC.to(device), keys_SL.to(device), mask[:, None, None].to(device))


def segment_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scaling: float) -> Tensor:
    """Attend within ``blocks``. ``query`` [B, H, T, D], ``key`` and ``value`` [B, E, T, D]; returns [B, T, H, D].

    Rows that no block queries (padding) come out as zeros.
    """
    batch, heads, width, size = query.shape
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    flat = (t.to(dtype).transpose(1, 2).reshape(batch * width, t.shape[1], size) for t in (query, key, value))
    with torch.autocast(kind, enabled=False):
        return _SegmentAttention.apply(*flat, tuple(blocks), scaling).view(batch, width, heads, size)


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_RHD: Tensor, key_RED: Tensor, value_RED: Tensor, blocks: tuple[Block, ...], scaling: float
    ) -> Tensor:
        rows, heads, size = query_RHD.shape
        out = query_RHD.new_zeros(rows + 1, heads * size)
        for block in blocks:
            q, k, v = _gather(block, query_RHD, key_RED, value_RED)
            attended = _probs(block, q, k, scaling) @ v
            out.index_copy_(0, block.queries.flatten(), _by_query(attended, heads))
        out_RHD = out[:rows].view(rows, heads, size)
        ctx.save_for_backward(query_RHD, key_RED, value_RED)
        ctx.blocks, ctx.scaling = blocks, scaling
        return out_RHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RHD: Tensor) -> tuple[Tensor | None, ...]:
        """With P the probabilities and s the scaling.

        dV = Pᵀ dO, dS = P (dO Vᵀ − Σ P dO Vᵀ), dQ = s dS K, dK = s dSᵀ Q.
        """
        query_RHD, key_RED, value_RED = ctx.saved_tensors
        rows, heads, _ = query_RHD.shape
        # Padded queries receive one more row, of zeros: they add nothing to keys and values.
        d_out_RHD = torch.cat((grad_RHD, torch.zeros_like(grad_RHD[:1])))
        d_query = torch.zeros_like(d_out_RHD).flatten(1)
        d_key = torch.zeros_like(key_RED, dtype=_wide(key_RED.dtype))
        d_value = torch.zeros_like(d_key)
        for block in ctx.blocks:
            q, k, v = _gather(block, query_RHD, key_RED, value_RED)
            d_out = _group_queries(d_out_RHD[block.queries], k.shape[1])
            probs = _probs(block, q, k, ctx.scaling)
            d_scores = torch._softmax_backward_data(d_out @ v.mT, probs, -1, probs.dtype)
            d_query.index_copy_(0, block.queries.flatten(), _by_query(d_scores @ k, heads))
            d_key.index_add_(0, block.keys.flatten(), _by_key(d_scores.mT @ q).to(d_key.dtype))
            d_value.index_add_(0, block.keys.flatten(), _by_key(probs.mT @ d_out).to(d_key.dtype))
        d_query = d_query[:rows].mul_(ctx.scaling).view_as(query_RHD)
        return d_query, d_key.mul_(ctx.scaling).to(key_RED.dtype), d_value.to(value_RED.dtype), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _gather(block: Block, query_RHD: Tensor, key_RED: Tensor, value_RED: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries [S, E, G * C, D], keys and values [S, E, L, D]."""
    queries = block.queries.clamp(max=query_RHD.shape[0] - 1)
    return (
        _group_queries(query_RHD[queries], key_RED.shape[1]),
        key_RED[block.keys].transpose(1, 2),
        value_RED[block.keys].transpose(1, 2),
    )


def _group_queries(x_SCHD: Tensor, key_heads: int) -> Tensor:
    """[S, C, H, D] to [S, E, G * C, D]."""
    return x_SCHD.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _by_query(x: Tensor, heads: int) -> Tensor:
    """[S, E, G * C, D] to [S * C, H * D], the inverse of :func:`_group_queries`."""
    return x.unflatten(2, (heads // x.shape[1], -1)).permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)


def _by_key(x_SELD: Tensor) -> Tensor:
    """[S, E, L, D] to [S * L, E, D]."""
    return x_SELD.transpose(1, 2).flatten(0, 1)


def _probs(block: Block, q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Attention probabilities [S, E, G * C, L] in the dtype of ``q``, the softmax itself in float32."""
    segments, key_heads, folded, _ = q.shape
    shape = (segments, key_heads, folded // block.mask.shape[3], *block.mask.shape[3:])
    # The product adds to a copy of the mask, so no separate pass scales or masks the scores.
    scores = block.mask.expand(shape).to(q.dtype, copy=True, memory_format=torch.contiguous_format)
    scores = scores.flatten(2, 3).flatten(0, 1).baddbmm_(q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scaling)
    return torch.softmax(scores, -1).unflatten(0, (segments, key_heads))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    blocks: Sequence[Block] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; ``blocks`` arrive as a keyword of the model's forward."""
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return segment_attention(query, key, value, blocks, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
