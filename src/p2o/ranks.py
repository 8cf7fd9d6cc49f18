"""The processes of a run, seen from one of them: which one it is, and how all of them agree.

All that ranks tell each other, beside what FSDP sums, goes through :class:`Ranks`. One process is the same code without
torch.distributed. torch's own object collectives would not do: they unpickle, and a signal waits until they are over.

Every method of :class:`Ranks` but the properties is called by all ranks, in the same order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from p2o.errors import RunError
from p2o.messages import decode, encode

T = TypeVar("T")

BUCKET = 2**24
"""Numbers that are summed in one message."""
LONGEST_NAP_S = 0.005
"""Seconds between two looks whether a message has come. A wait inside torch would keep signals from being handled."""
PATIENCE_S = 5.0
"""Seconds that a failed rank waits for the others to hear of it."""


class PeerLostError(RunError):
    """Another process of the run is gone, or cannot be reached."""


class DivergedError(RunError):
    """Ranks that must hold the same values do not."""


class Ranks:
    """The ranks of a run: ``rank`` of ``size``, the ``local_rank``-th of ``local_size`` on its machine."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        local_rank: int = 0,
        local_size: int = 1,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        """``control`` is the gloo group of messages; the default group sums tensors."""
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self._control = control
        self._leading = False
        self._deadline: float | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # ------------------------------------------------------------------ values and errors

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What ``make`` returned on each rank, in the order of ranks.

        If it raises on any rank, a stop included, it raises on all: a rank's own error, else that of the first rank
        that has one.
        """
        if self.size == 1:
            return [make()]
        value, own = _attempt(make)
        with self._leaving(own):
            outcomes = self._exchange((value, own))
        for _, error in outcomes:
            if error is not None:
                raise error
        return [cast(T, value) for value, _ in outcomes]

    def together(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on this rank; as :meth:`gather`, it raises on all ranks or on none."""
        if self.size == 1:
            return make()
        value, own = _attempt(make)
        self.gather(lambda: _raise(own))
        return cast(T, value)

    def in_turn(self, make: Callable[[], T]) -> T:
        """As :meth:`together`, rank 0 before the others: what it repairs, builds or downloads, they find."""
        if self.size == 1:
            return make()
        first = self.together(lambda: make() if self.is_first else None)
        return cast(T, self.together(lambda: first if self.is_first else make()))

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, or raises, on rank 0, on every rank. The others do not call it."""
        if self.size == 1:
            return make()
        value, own = _attempt(make) if self.is_first else (None, None)
        with self._leaving(own):
            value, error = self._broadcast((value, own))
        if error is not None:
            raise error
        return cast(T, value)

    def agree(self, value: str, what: str) -> None:
        """Raise :class:`DivergedError` unless all ranks bring the same ``value``; ``what`` says what it stands for."""
        digests = self.gather(lambda: hashlib.sha256(value.encode()).hexdigest())
        if len(set(digests)) > 1:
            odd = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
            raise DivergedError(
                f"{what} of rank {', '.join(odd)} is not that of rank 0: the ranks run on unlike machines, versions or "
                "data; give all of them the same"
            )

    # ------------------------------------------------------------------ one leads

    def lead(self, work: Callable[[], T], serve: Callable[[Any], object]) -> T:
        """What ``work`` returns, or raises, on rank 0; meanwhile the other ranks ``serve`` each of its commands."""
        if self.size == 1:
            return work()
        if self.is_first:
            self._leading = True
            value, own = _attempt(work)
            self._leading = False
            with self._leaving(own):
                self._broadcast(_End(value, own))
            return cast(T, value)
        own = None
        while True:
            message = self._broadcast(None)
            if not isinstance(message, _End):
                # Rank 0 hears of an error where the command gathers, and ends the work with it.
                own = _attempt(lambda served=message: serve(served))[1]  # type: ignore[misc]
            elif own is not None:
                raise own
            elif message.error is not None:
                raise message.error
            else:
                return cast(T, message.value)

    def command(self, message: Any) -> None:
        """Tell the ranks that serve what to do; without effect outside of :meth:`lead`."""
        if self._leading:
            self._broadcast(message)

    # ------------------------------------------------------------------ tensors

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over all ranks, in place."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._wait(dist.all_reduce(flat, async_op=True))
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, parts, strict=True):
                tensor.copy_(total.view_as(tensor))

    # ------------------------------------------------------------------ messages

    def _exchange(self, value: Any) -> list[Any]:
        data = encode(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._wait(dist.all_gather(sizes, torch.tensor([len(data)]), group=self._control, async_op=True))
        longest = max(int(size) for size in sizes)
        buffers = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        mine = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        self._wait(dist.all_gather(buffers, mine, group=self._control, async_op=True))
        return [decode(b.numpy().tobytes()[: int(n)]) for b, n in zip(buffers, sizes, strict=True)]

    def _broadcast(self, value: Any) -> Any:
        """The ``value`` that rank 0 brings."""
        data = encode(value) if self.is_first else b""
        size = torch.tensor([len(data)])
        self._wait(dist.broadcast(size, 0, group=self._control, async_op=True))
        buffer = torch.frombuffer(bytearray(data or bytes(int(size))), dtype=torch.uint8)
        self._wait(dist.broadcast(buffer, 0, group=self._control, async_op=True))
        return value if self.is_first else decode(buffer.numpy().tobytes())

    @contextmanager
    def _leaving(self, own: BaseException | None) -> Iterator[None]:
        """Around the message that carries this rank's error, which is raised at the end, heard or not."""
        self._deadline = None if own is None else time.monotonic() + PATIENCE_S
        try:
            yield
        except PeerLostError:
            if own is None:
                raise
        finally:
            self._deadline = None
        if own is not None:
            raise own

    def _wait(self, work: Any) -> None:
        nap_s = 2e-5
        while not work.is_completed():
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise PeerLostError("the other ranks do not listen")
            time.sleep(nap_s)
            nap_s = min(1.5 * nap_s, LONGEST_NAP_S)
        try:
            work.wait()
        except RuntimeError as error:
            raise PeerLostError(
                "another process of the run is gone (killed, or out of memory): the same command continues from the "
                "last checkpoint"
            ) from error


ALONE = Ranks()
"""The ranks of a run of one process."""


@dataclass
class _End:
    """The last message of :meth:`Ranks.lead`."""

    value: Any
    error: BaseException | None


def _attempt(make: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return make(), None
    except BaseException as error:
        return None, error


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one kind and device that travel together."""
    buckets: list[list[Tensor]] = []
    filled: dict[Any, int] = {}
    place: dict[Any, int] = {}
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        if kind not in place or filled[kind] + tensor.numel() > BUCKET:
            place[kind], filled[kind] = len(buckets), 0
            buckets.append([])
        buckets[place[kind]].append(tensor)
        filled[kind] += tensor.numel()
    return buckets
