"""Where a round's time and memory go (``debug=profile``): seconds, tokens, arithmetic and memory by phase.

The code that works says what it is doing, ``with timed("decode", layers=rows, head=rows): ...``; while
nothing is profiled that is a shared context that does nothing. Phases nest, and what is spent in an inner one is not
counted in the outer one; what is spent in none is "other".

The arithmetic counted is that of the matrix products with the model's weights, two operations a weight and token;
attention, adapters and everything elementwise are left out, so the share of the peak is a lower bound.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

T = TypeVar("T")

OTHER = "other"
PROBE_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices whose product gives the peak; a GPU is not filled by less."""
PROBE_S = 0.3


@dataclass(slots=True)
class Cost:
    """What a phase took. ``tokens`` went through the layers, ``operations`` are those of its matrix products."""

    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0
    operations: float = 0.0
    peak_bytes: int = 0


class Profile:
    """Costs by phase since the last :meth:`table`, of the work of one model with arithmetic in ``dtype``."""

    def __init__(self, lm: PreTrainedModel, dtype: torch.dtype) -> None:
        self._lm = lm
        self._dtype = dtype
        modules = dict(getattr(lm, lm.base_model_prefix).named_modules())
        self._head = 2.0 * lm.get_output_embeddings().weight.numel()
        self._layers = 2.0 * sum(
            module.weight.numel()
            for name, module in modules.items()
            if isinstance(module, nn.Linear) and ".lora_" not in name
        )
        self._lora = any(".lora_" in name for name in modules)
        self._device: torch.device | None = None
        self._matrix_peak = 0.0
        self._stack = [OTHER]
        self._begin()

    @contextmanager
    def phase(self, name: str, layers: int, head: int) -> Iterator[None]:
        self._lap()
        cost = self.costs.setdefault(name, Cost())
        cost.calls += 1
        cost.tokens += layers
        cost.operations += self._operations(name, layers, head)
        self._stack.append(name)
        try:
            yield
        finally:
            self._lap()
            self._stack.pop()

    def count(self, tokens: int) -> None:
        self.costs.setdefault(self._stack[-1], Cost()).tokens += tokens

    def table(self, title: str) -> str:
        """The costs as text; the count begins anew."""
        self._lap()
        total, dtype = sum(cost.seconds for cost in self.costs.values()), str(self._dtype).removeprefix("torch.")
        lines = [
            f"profile of {title}: {total:.2f} s; matrix peak: {dtype} {self._matrix_peak / 1e9:,.0f} GFLOP/s",
            "phase       seconds  share  calls   tokens  tokens/s  of peak    memory",
        ]
        for name, cost in sorted(self.costs.items(), key=lambda item: item[0] == OTHER):
            speed = f"{cost.tokens / cost.seconds:,.0f}" if cost.tokens else "–"
            rate = f"{cost.operations / cost.seconds / self._matrix_peak:.0%}" if cost.operations else "–"
            memory = f"{cost.peak_bytes / 2**30:.2f} GiB" if cost.peak_bytes else "–"
            lines.append(
                f"{name:<10}{cost.seconds:>9.2f}{cost.seconds / total:>7.0%}{cost.calls:>7,}"
                f"{f'{cost.tokens:,}' if cost.tokens else '–':>9}{speed:>10}{rate:>9}{memory:>10}"
            )
        self._begin()
        return "\n".join(lines)

    def _begin(self) -> None:
        self.costs: dict[str, Cost] = {OTHER: Cost(calls=1)}
        if self._device is not None:
            _peak_bytes(self._device)
        self._last = time.perf_counter()

    def _lap(self) -> None:
        """Book what has passed since the last lap under the phase that we are in.

        The first lap finds out where the model is: a trainer moves it there after the profile has begun.
        """
        if self._device is None:
            self._device = self._lm.device
            self._matrix_peak = matrix_peak(self._dtype, self._device)
            self._begin()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        cost = self.costs.setdefault(self._stack[-1], Cost())
        cost.seconds += time.perf_counter() - self._last
        cost.peak_bytes = max(cost.peak_bytes, _peak_bytes(self._device))
        self._last = time.perf_counter()

    def _operations(self, name: str, layers: int, head: int) -> float:
        """The head's forward pass in an update also takes the gradient by the hidden states
        (:mod:`p2o.policy.head`); its backward pass computes the logits again, for the gradient of its own weight."""
        if name == "forward":
            return layers * self._layers + 2 * head * self._head
        if name == "backward":
            return layers * self._layers if self._lora else 2 * (layers * self._layers + head * self._head)
        return layers * self._layers + head * self._head


_active: Profile | None = None
_NOTHING = nullcontext()


def elapsed(call: Callable[[], T]) -> tuple[T, float]:
    """The call's result and its wall-clock seconds, whether or not anything is profiled."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def timed(name: str, *, layers: int = 0, head: int = 0) -> AbstractContextManager[None]:
    """What is done inside is ``name``: it takes ``layers`` tokens through the layers and ``head`` through the head."""
    return _NOTHING if _active is None else _active.phase(name, layers, head)


def count(tokens: int) -> None:
    """Add tokens to the phase that we are in. Their arithmetic is not counted: it is another process's."""
    if _active is not None:
        _active.count(tokens)


def report(title: str) -> None:
    """Log what was spent since the last report, where anything is profiled."""
    if _active is not None:
        log.info("%s", _active.table(title))


@contextmanager
def profiling(lm: PreTrainedModel, dtype: torch.dtype, *, enabled: bool = True) -> Iterator[Profile | None]:
    """Profile what is done with ``lm`` in the block."""
    global _active
    _active = Profile(lm, dtype) if enabled else None
    try:
        yield _active
    finally:
        _active = None


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of two square matrices, at its fastest within :data:`PROBE_S` seconds."""
    size = PROBE_SIZE[device.type]
    factor = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        torch.matmul(factor, factor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = [elapsed(product)[1]]
    while sum(times) < PROBE_S:
        times.append(elapsed(product)[1])
    return 2.0 * size**3 / min(times)


def _peak_bytes(device: torch.device) -> int:
    """Most memory since the last call: what torch held on the GPU, or the process's resident set (0 = unknown)."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
