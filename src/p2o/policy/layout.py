"""How training samples are laid out in micro-batches.

A micro-batch holds *trees*: a prefix of tokens and the branches that continue it. Every token sees the tokens before it
in the prefix and in its own branch, never another branch. The three layouts are ways to make and place trees:

    padded          a row is one sample; rows of similar length, filled up with padding
    packed          one row holds many samples, each a tree of one branch
    shared_prefix   one row holds many trees; the samples that have the same prompt are the branches of one tree

Positions restart at every tree, and a branch continues the prefix's positions, so a token's position is that of its
own sample in all three. The head gets only the hidden states that predict completion tokens: for the first token of a
completion, that of the prompt's last token, which all branches share. The last token of a completion predicts nothing
and is left out.

Shapes: B rows, T tokens of a row, N completion tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

LAYOUTS = ("padded", "packed", "shared_prefix")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to train on, and the prompt that it is trained under. Neither may be empty."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.completion:
            raise ValueError("a training sample needs at least one prompt token and one completion token")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that attends causally to itself and fully to a prefix, both given in the flattened [B * T]."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def keys(self) -> int:
        return self.prefix_length + self.length


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass; ``predictors``, ``targets``, ``samples`` and ``tokens`` have one entry per target token."""

    input_ids: Tensor
    """[B, T]"""
    position_ids: Tensor
    """[B, T]"""
    segments: tuple[Segment, ...]
    """Who sees whom. Every token but padding is in exactly one."""
    predictors: Tensor
    """[N] index, in the flattened [B * T], of the hidden state that predicts the target."""
    targets: Tensor
    """[N] token ids."""
    samples: Tensor
    """[N] index of the sample."""
    tokens: Tensor
    """[N] index of the target in the concatenation of all samples' completions."""

    @property
    def padding_mask(self) -> Tensor:
        """[B, T], 1 = token, 0 = padding; with plain causal attention, all that the layout ``padded`` needs."""
        mask = torch.zeros(self.input_ids.numel(), dtype=torch.long)
        for segment in self.segments:
            mask[segment.start : segment.start + segment.length] = 1
        return mask.view(self.input_ids.shape)


_NO_TOKENS = torch.empty(0, dtype=torch.long)
EMPTY = MicroBatch(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0, 1]]), (Segment(0, 2),), *(_NO_TOKENS,) * 4)
"""A pass without a target, which a rank makes with the others if it has nothing to train on."""


@dataclass(frozen=True, slots=True)
class _Tree:
    prompt: tuple[int, ...]
    branches: tuple[tuple[int, tuple[int, ...]], ...]
    """(sample index, completion)"""

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(len(completion) - 1 for _, completion in self.branches)


def micro_batches(samples: Sequence[Sample], layout: str, token_budget: int, *, pad_id: int = 0) -> list[MicroBatch]:
    """Lay ``samples`` out in few micro-batches of at most ``token_budget`` tokens, padding included.

    A sample that alone exceeds the budget gets a micro-batch of its own. Every completion token of every sample is a
    target exactly once, whatever the layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"policy.layout={layout}: choose one of {', '.join(LAYOUTS)}")
    offsets = [0, *accumulate(len(s.completion) for s in samples)]
    if layout == "shared_prefix":
        trees = _share_prefixes(samples, token_budget)
    else:
        trees = [_Tree(s.prompt, ((i, s.completion),)) for i, s in enumerate(samples)]
    trees.sort(key=lambda tree: -tree.size)
    batches = _fill_padded(trees, token_budget) if layout == "padded" else _fill_rows(trees, token_budget)
    return [_micro_batch(rows, offsets, pad_id) for rows in batches]


def deal(samples: Sequence[Sample], layout: str, hands: int) -> list[list[int]]:
    """Indices of ``samples`` for each of ``hands`` processes, which then have about equally many tokens to compute.

    What ``layout`` makes a tree of stays together. The largest come first, each to who has the least so far.
    """
    together: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        together.setdefault(sample.prompt if layout == "shared_prefix" else index, []).append(index)
    trees = [
        (len(samples[own[0]].prompt) + sum(len(samples[i].completion) for i in own), own) for own in together.values()
    ]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    sizes = [0] * hands
    for size, own in sorted(trees, key=lambda tree: -tree[0]):
        hand = sizes.index(min(sizes))
        dealt[hand] += own
        sizes[hand] += size
    return [sorted(hand) for hand in dealt]


def _share_prefixes(samples: Sequence[Sample], budget: int) -> list[_Tree]:
    """One tree per distinct prompt; several if its branches together exceed the budget."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        by_prompt.setdefault(sample.prompt, []).append(index)
    trees: list[_Tree] = []
    for prompt, indices in by_prompt.items():
        branches: list[tuple[int, tuple[int, ...]]] = []
        size = len(prompt)
        for index in indices:
            completion = samples[index].completion
            if branches and size + len(completion) - 1 > budget:
                trees.append(_Tree(prompt, tuple(branches)))
                branches, size = [], len(prompt)
            branches.append((index, completion))
            size += len(completion) - 1
        trees.append(_Tree(prompt, tuple(branches)))
    return trees


def _fill_padded(trees: list[_Tree], budget: int) -> list[list[list[_Tree]]]:
    """Batches of one-tree rows; ``trees`` come longest first, so the first of a batch sets its width."""
    batches: list[list[list[_Tree]]] = []
    for tree in trees:
        if batches and (len(batches[-1]) + 1) * batches[-1][0][0].size <= budget:
            batches[-1].append([tree])
        else:
            batches.append([[tree]])
    return batches


def _fill_rows(trees: list[_Tree], budget: int) -> list[list[list[_Tree]]]:
    """Batches of one row each, as few as first-fit makes of ``trees``, which come largest first.

    Dealt to that many rows by size, trees usually make rows of about equal size; the largest row decides how much
    memory a step takes.
    """
    rows: list[list[_Tree]] = []
    free: list[int] = []
    for tree in trees:
        place = next((i for i, room in enumerate(free) if tree.size <= room), None)
        if place is None:
            rows.append([tree])
            free.append(budget - tree.size)
        else:
            rows[place].append(tree)
            free[place] -= tree.size
    even: list[list[_Tree]] = [[] for _ in rows]
    sizes = [0] * len(rows)
    for tree in trees:
        place = sizes.index(min(sizes))
        even[place].append(tree)
        sizes[place] += tree.size
    return [[row] for row in (even if max(sizes, default=0) < budget - min(free, default=0) else rows)]


def _micro_batch(rows: list[list[_Tree]], offsets: list[int], pad_id: int) -> MicroBatch:
    width = max(sum(tree.size for tree in row) for row in rows)
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    targets: list[tuple[int, int, int, int]] = []
    for number, row in enumerate(rows):
        for tree in row:
            _place(tree, ids, positions, segments, targets, offsets)
        padding = (number + 1) * width - len(ids)
        ids += [pad_id] * padding
        positions += [0] * padding
    predictors, tokens, index, flat = (torch.tensor(column) for column in zip(*targets, strict=True))
    return MicroBatch(
        input_ids=torch.tensor(ids).view(len(rows), width),
        position_ids=torch.tensor(positions).view(len(rows), width),
        segments=tuple(segments),
        predictors=predictors,
        targets=tokens,
        samples=index,
        tokens=flat,
    )


def _place(
    tree: _Tree,
    ids: list[int],
    positions: list[int],
    segments: list[Segment],
    targets: list[tuple[int, int, int, int]],
    offsets: list[int],
) -> None:
    """Append a tree's tokens, and for each target (predictor, token, sample, index of the token among all)."""
    root, prompt = len(ids), len(tree.prompt)
    ids += tree.prompt
    positions += range(prompt)
    alone = len(tree.branches) == 1
    if not alone:
        segments.append(Segment(root, prompt))
    for sample, completion in tree.branches:
        start, length = len(ids), len(completion) - 1
        ids += completion[:-1]
        positions += range(prompt, prompt + length)
        if alone:
            segments.append(Segment(root, prompt + length))
        elif length:
            segments.append(Segment(start, length, root, prompt))
        for i, token in enumerate(completion):
            predictor = start + i - 1 if i else root + prompt - 1
            targets.append((predictor, token, sample, offsets[sample] + i))
