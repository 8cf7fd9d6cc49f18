"""Prompts as a tree: shared beginnings once, every node sees its own past and nothing else."""

from __future__ import annotations

import torch

from p2o.rollout.hf.prefix_tree import PrefixTree

CPU = torch.device("cpu")


def test_shared_beginnings_are_one_path() -> None:
    tree = PrefixTree()
    assert tree.add([7, 8, 9]) == [0, 1, 2]
    assert tree.add([7, 8, 5, 9]) == [0, 1, 3, 4]
    assert tree.add([8, 8]) == [5, 6]
    assert tree.add([7, 8]) == [0, 1]
    assert tree.add([]) == []
    assert tree.tokens == [7, 8, 9, 5, 9, 8, 8]
    assert tree.positions == [0, 1, 2, 2, 3, 0, 1]


def test_a_node_sees_its_ancestors_and_itself() -> None:
    tree = PrefixTree()
    paths = [tree.add(prompt) for prompt in ([7, 8, 9], [7, 8, 5, 9], [8, 8])]
    mask = tree.mask(torch.float32, CPU)
    assert mask is not None
    assert mask.shape == (1, 1, 7, 7)
    for node in range(7):
        expected = next(path[: path.index(node) + 1] for path in paths if node in path)
        assert (mask[0, 0, node] == 0).nonzero().flatten().tolist() == sorted(expected)


def test_a_single_prompt_needs_no_mask() -> None:
    tree = PrefixTree()
    tree.add([4, 4, 4])
    tree.add([4, 4])
    assert tree.mask(torch.float32, CPU) is None
    tree.add([4, 5])
    assert tree.mask(torch.float32, CPU) is not None
