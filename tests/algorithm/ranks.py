"""Several ranks in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from p2o.ranks import Ranks

T = TypeVar("T")


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        everything = list(self.brought)
        self.barrier.wait()
        return everything


class ThreadRanks(Ranks):
    """A rank that is a thread: the same agreements without torch.distributed."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        super().__init__(rank, size)
        self._meeting = meeting

    def _exchange(self, value: Any) -> list[Any]:
        return self._meeting.exchange(self.rank, value)

    def _broadcast(self, value: Any) -> Any:
        return self._exchange(value)[0]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        everything = self._meeting.exchange(self.rank, [tensor.clone() for tensor in tensors])
        for tensor, parts in zip(tensors, zip(*everything, strict=True), strict=True):
            tensor.copy_(sum(parts[1:], start=parts[0]))


def on_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What ``work`` returns on each rank; an error of one is raised here."""
    meeting = _Meeting(size)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
