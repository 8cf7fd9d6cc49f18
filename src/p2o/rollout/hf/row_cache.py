"""Keys and values of the sequences that are being decoded, and the attention that reads them.

Shapes: R rows in use (a row is one sequence), H query heads, G key heads, T tokens, D head size, N nodes of a prefix
tree, M entries written by a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

CHUNK = 32
GPU_CHUNK = 256
"""A growing cache discards recorded graphs, and a GPU reads hidden entries at little cost."""
ATTENTION = "p2o_rows"


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Where the nodes of a tree go: entry m copies node ``nodes[m]`` to ``rows[m]``, ``positions[m]``; all [M]."""

    nodes: Tensor
    roots: Tensor
    rows: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """Where the next token of each of the first R rows goes: index [R * G] into [rows * G * capacity]."""

    rows: int
    index: Tensor


class RowCache(Cache):
    """A transformers cache over rows of differing length.

    :meth:`prefill` and :meth:`step` announce what the next forward pass writes. Every layer keeps one contiguous
    tensor [rows, G, capacity, D] that grows by chunks: batched products on the CPU copy a tensor that is sliced along
    its third axis (chunks took 0.6 of the time of slices of a full-length buffer).

    Keys are stored relative to the row's first key. Softmax ignores a constant, and scores are rounded less:
    the first key draws the largest ones. In bfloat16 that is as good as float32 scores (largest error of a log-prob
    over 1,600 tokens of SmolLM2: 0.23 instead of 0.97) and costs nothing.
    """

    def __init__(self, rows: int, key_heads: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.key_heads = key_heads
        self.dtype = dtype
        self.device = device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.origins: list[Tensor] = []
        self.capacity = 0
        """Tokens that each row has room for."""
        self._writing: _Prefill | _Step | None = None

    def prefill(self, paths: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
        """The next pass computes a tree's nodes; ``rows[i]`` takes those of ``paths[i]``, in order."""
        self.reserve(max(map(len, paths)))
        entries = [
            (node, path[0], row, position)
            for path, row in zip(paths, rows, strict=True)
            for position, node in enumerate(path)
        ]
        self._writing = _Prefill(*torch.tensor(entries, device=self.device).unbind(1))

    def step(self, positions_R: Tensor) -> Tensor:
        """The next pass computes one token of each of the first R rows, at ``positions_R`` below the capacity.

        Returns the additive mask [R, 1, 1, capacity] that hides what a row has not written.
        """
        rows = len(positions_R)
        first = torch.arange(rows * self.key_heads, device=self.device) * self.capacity
        self._writing = _Step(rows, first + positions_R.repeat_interleave(self.key_heads))
        hidden = torch.arange(self.capacity, device=self.device) > positions_R[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [1, G, N, D] or [R, G, 1, D]; return what the queries of this pass attend to."""
        key, value = key_states.to(self.dtype), value_states.to(self.dtype)
        if layer_idx == len(self.keys):
            self._add_layer(key.shape[-1], value.shape[-1])
        keys, values, origins = self.keys[layer_idx], self.values[layer_idx], self.origins[layer_idx]
        to = self._writing
        if isinstance(to, _Prefill):
            by_node = key[0].transpose(0, 1)
            origins[to.rows, :, 0] = by_node[to.roots]
            keys[to.rows, :, to.positions] = by_node[to.nodes] - by_node[to.roots]
            values[to.rows, :, to.positions] = value[0].transpose(0, 1)[to.nodes]
            return key, value
        assert isinstance(to, _Step)
        key = key - origins[: to.rows]
        # index_copy_ takes twice as long on the CPU.
        keys.view(-1, key.shape[-1])[to.index] = key.flatten(0, 2)
        values.view(-1, value.shape[-1])[to.index] = value.flatten(0, 2)
        return keys[: to.rows], values[: to.rows]

    def move(self, source: int, target: int) -> None:
        """Row ``target`` becomes a copy of row ``source``."""
        for tensor in (*self.keys, *self.values, *self.origins):
            tensor[target] = tensor[source]

    def _add_layer(self, key_size: int, value_size: int) -> None:
        # Zeros, not whatever the memory holds: hidden positions still meet a product.
        for tensors, length, size in (
            (self.keys, self.capacity, key_size),
            (self.values, self.capacity, value_size),
            (self.origins, 1, key_size),
        ):
            shape = (self.rows, self.key_heads, length, size)
            tensors.append(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in every row."""
        if length <= self.capacity:
            return
        chunk = GPU_CHUNK if self.device.type == "cuda" else CHUNK
        grown = -(-length // chunk) * chunk
        for tensors in (self.keys, self.values):
            for i, tensor in enumerate(tensors):
                tensors[i] = F.pad(tensor, (0, 0, 0, grown - self.capacity))
        self.capacity = grown

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention without repeated keys: query [R, H, T, D], key and value [R, G, T', D] to [R, T, H, D].

    A decode step has one query per head; the queries of a key head become the rows of one product, which took half of
    the time of torch's fused kernel on the CPU. Any other pass is the prefill of a tree, causal if it has no mask.
    """
    rows, heads, length, size = query.shape
    query = query.to(key.dtype)
    if length > 1 or attention_mask is None:
        key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
        out = F.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=attention_mask is None and length > 1, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    query = (query * (size**-0.5 if scaling is None else scaling)).view(rows, key.shape[1], -1, size)
    scores = torch.matmul(query, key.transpose(2, 3)).add_(attention_mask)
    return torch.matmul(torch.softmax(scores, -1), value).view(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, row_attention)
