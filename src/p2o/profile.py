"""Where a round's time and memory go (``debug=profile``): seconds, tokens and memory by phase.

The code that works says what it is doing, ``with timed("decode", tokens=rows): ...``; while nothing is profiled that is
a shared context that does nothing. Phases nest, and what is spent in an inner one is not counted in the outer one; what
is spent in none is "other".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

OTHER = "other"


@dataclass(slots=True)
class Cost:
    """What a phase took. ``tokens`` went through the model."""

    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0
    peak_bytes: int = 0


class Profile:
    """Costs by phase since the last :meth:`table`."""

    def __init__(self) -> None:
        self._stack = [OTHER]
        self._begin()

    @contextmanager
    def phase(self, name: str, tokens: int) -> Iterator[None]:
        self._lap()
        self._stack.append(name)
        self.count(tokens)
        self.costs[name].calls += 1
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
        total = sum(cost.seconds for cost in self.costs.values())
        lines = [
            f"profile of {title}: {total:.2f} s",
            "phase       seconds  share  calls   tokens  tokens/s    memory",
        ]
        for name, cost in sorted(self.costs.items(), key=lambda item: item[0] == OTHER):
            tokens, speed = (f"{cost.tokens:,}", f"{cost.tokens / cost.seconds:,.0f}") if cost.tokens else ("–", "–")
            memory = f"{cost.peak_bytes / 2**30:.2f} GiB" if cost.peak_bytes else "–"
            share = f"{cost.seconds / total:.0%}"
            lines.append(f"{name:<10}{cost.seconds:>9.2f}{share:>7}{cost.calls:>7,}{tokens:>9}{speed:>10}{memory:>10}")
        self._begin()
        return "\n".join(lines)

    def _begin(self) -> None:
        self.costs: dict[str, Cost] = {OTHER: Cost(calls=1)}
        _peak_bytes()
        self._last = time.perf_counter()

    def _lap(self) -> None:
        """Book what has passed since the last lap under the phase that we are in."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        cost = self.costs.setdefault(self._stack[-1], Cost())
        cost.seconds += time.perf_counter() - self._last
        cost.peak_bytes = max(cost.peak_bytes, _peak_bytes())
        self._last = time.perf_counter()


_active: Profile | None = None
_NOTHING = nullcontext()


def elapsed(call: Callable[[], T]) -> tuple[T, float]:
    """The call's result and its wall-clock seconds, whether or not anything is profiled."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def timed(name: str, *, tokens: int = 0) -> AbstractContextManager[None]:
    """What is done inside is ``name``, which takes ``tokens`` through the model."""
    return _NOTHING if _active is None else _active.phase(name, tokens)


def count(tokens: int) -> None:
    """Add tokens to the phase that we are in."""
    if _active is not None:
        _active.count(tokens)


def report(title: str) -> None:
    """Log what was spent since the last report, if anything is profiled."""
    if _active is not None:
        log.info("%s", _active.table(title))


@contextmanager
def profiling(*, enabled: bool = True) -> Iterator[Profile | None]:
    """Profile what is done in the block."""
    global _active
    _active = Profile() if enabled else None
    try:
        yield _active
    finally:
        _active = None


def _peak_bytes() -> int:
    """Most memory since the last call: what torch held on the GPU, or the process's resident set (0 = unknown)."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
