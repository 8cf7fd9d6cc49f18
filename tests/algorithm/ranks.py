"""Several ranks in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Ranks:
    """Threads that meet in ``reduce`` and leave it with the sum of what all of them brought."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: list[list[Tensor]] = [[] for _ in range(size)]

    def reduce(self, rank: int) -> Callable[[Sequence[Tensor]], None]:
        def call(tensors: Sequence[Tensor]) -> None:
            self.brought[rank] = [t.clone() for t in tensors]
            self.barrier.wait()
            sums = [torch.stack(parts).sum(0) for parts in zip(*self.brought, strict=True)]
            self.barrier.wait()
            for tensor, total in zip(tensors, sums, strict=True):
                tensor.copy_(total)

        return call
