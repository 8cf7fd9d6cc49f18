"""Prompts as a tree of tokens: a shared beginning is computed once.

Prompts share much: the chat header, the words around the question, a template. In one forward pass over the tree's
nodes each node attends to its ancestors and itself, which is what it would see in every prompt that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PrefixTree:
    """The union of prompts. Node i has a token, a position (its depth) and a parent; parents come before children."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self._parents: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, prompt: Sequence[int]) -> list[int]:
        """The nodes of ``prompt``, first token first; missing ones are made."""
        path: list[int] = []
        parent = -1
        for position, token in enumerate(prompt):
            node = self._nodes.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(position)
                self._parents.append(parent)
            path.append(node)
            parent = node
        return path

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Additive mask [1, 1, N, N]: 0 for ancestors and self, −inf elsewhere. None if plain causality does."""
        if all(parent == node - 1 for node, parent in enumerate(self._parents)):
            return None
        visible_NN = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                visible_NN[node] |= visible_NN[parent]
        mask_NN = torch.zeros(visible_NN.shape, dtype=dtype).masked_fill_(~visible_NN, float("-inf"))
        return mask_NN[None, None].to(device)
