"""Peak of live tensors, counted by their sizes: what a kernel packs or pads for itself depends on the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Bytes of all tensors that were made inside and still live: ``peak`` at the most, ``largest`` of one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.largest = 0
        self._from_before: dict[int, StorageWeakRef] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        self._forget_the_dead()
        for ref, _ in _storages((args, kwargs)):
            if ref.cdata not in self._made:
                self._from_before[ref.cdata] = ref
        out = func(*args, **kwargs)
        for ref, size in _storages((args, kwargs, out)):  # an argument's too: ``out=`` may grow it
            if ref.cdata not in self._from_before:
                self._made[ref.cdata] = ref, size
                self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return out

    def _forget_the_dead(self) -> None:
        """A storage that is gone may have its address taken by another one."""
        self._from_before = {at: ref for at, ref in self._from_before.items() if not ref.expired()}
        self._made = {at: (ref, size) for at, (ref, size) in self._made.items() if not ref.expired()}


def _storages(values: object) -> Iterator[tuple[StorageWeakRef, int]]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and not value.is_sparse:
            storage = value.untyped_storage()
            yield StorageWeakRef(storage), storage.nbytes()


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors that were live at once while ``call`` ran, beyond those that were before it."""
    with LiveTensors() as tensors:
        call()
    return tensors.peak
