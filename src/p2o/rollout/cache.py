"""Keys and values of the rows that are being decoded, and the attention that reads them.

Shapes: R rows in use, P prompts, H query heads, G key/value heads, Q = H / G queries a key head, T tokens, D head size.

A row is one sequence; rows differ in length. Every layer keeps its keys and values as one contiguous tensor
[rows, G, capacity, D] that grows by whole chunks, because batched products on the CPU copy a tensor that is cut
along its third axis (measured: contiguous chunks took 0.6 of the time of slices of a full-length buffer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

CHUNK = 32
ATTENTION = "p2o_grouped"


class RowCache(Cache):
    """A transformers cache over rows. :meth:`prefill` and :meth:`step` say what the next forward pass writes."""

    def __init__(self, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.dtype = dtype
        self.device = device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._capacity = 0
        self._slots: Tensor | None = None
        self._prompts: Tensor | None = None
        self._flat_index: Tensor | None = None

    def prefill(self, prompts: Tensor, slots: Tensor, length: int) -> None:
        """The next pass computes ``length`` tokens of several prompts; row ``slots[i]`` takes prompt ``prompts[i]``."""
        self._reserve(length)
        self._prompts, self._slots, self._flat_index = prompts, slots, None

    def step(self, positions_R: Tensor, longest: int) -> Tensor:
        """The next pass computes one token of each of the first R rows, at ``positions_R`` (at most ``longest``).

        Returns the additive mask [R, 1, 1, capacity] that hides what a row has not written.
        """
        self._reserve(longest + 1)
        self._slots = self._prompts = None
        self._positions_R = positions_R
        self._flat_index = None
        hidden = torch.arange(self._capacity, device=self.device) > positions_R[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [R, G, 1, D] or [P, G, T, D]; return what the queries of this pass attend to."""
        if layer_idx == len(self.keys):
            shape = (self.rows, key_states.shape[1], self._capacity, key_states.shape[3])
            self.keys.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
            self.values.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        key_states, value_states = key_states.to(self.dtype), value_states.to(self.dtype)
        if self._slots is not None:
            length = key_states.shape[2]
            keys[self._slots, :, :length] = key_states[self._prompts]
            values[self._slots, :, :length] = value_states[self._prompts]
            return key_states, value_states
        rows, heads, _, size = key_states.shape
        if self._flat_index is None:
            first = torch.arange(rows * heads, device=self.device) * self._capacity
            self._flat_index = first + self._positions_R.repeat_interleave(heads)
        keys.view(-1, size).index_copy_(0, self._flat_index, key_states.reshape(-1, size))
        values.view(-1, size).index_copy_(0, self._flat_index, value_states.reshape(-1, size))
        return keys[:rows], values[:rows]

    def move(self, source: int, target: int) -> None:
        """Row ``target`` becomes a copy of row ``source``."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def _reserve(self, length: int) -> None:
        """Make room for ``length`` tokens a row; what is new is zero, since hidden values still meet a product."""
        if length <= self._capacity:
            return
        grown = -(-length // CHUNK) * CHUNK
        for tensors in (self.keys, self.values):
            for i, tensor in enumerate(tensors):
                tensors[i] = F.pad(tensor, (0, 0, 0, grown - self._capacity))
        self._capacity = grown

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention without repeated keys: query [R, H, T, D], key and value [R, G, T', D] to [R, T, H, D].

    Without a mask the pass is a prefill and causal. With one it is a decode step (T = 1): the Q queries of a key head
    become the rows of one product. That took half of the time of torch's fused kernel on the CPU, which is built for
    many queries.
    """
    rows, heads, length, size = query.shape
    query = query.to(key.dtype)
    if attention_mask is None:
        groups = heads // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    scale = size**-0.5 if scaling is None else scaling
    query = (query * scale).view(rows, key.shape[1], -1, size)
    scores = torch.matmul(query, key.transpose(2, 3)).add_(attention_mask)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).view(rows, 1, heads, size), None


AttentionInterface.register(ATTENTION, grouped_attention)
