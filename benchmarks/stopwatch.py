"""The measured side: a contestant's process, which works when it is told to and says what it took.

``python -m benchmarks.stopwatch MODULE:FUNCTION '{"argument": ...}'`` calls ``FUNCTION(watch, **arguments)``, which
prepares, and then takes its measurements between ``watch.begin()`` and ``watch.end()``, for ever: the process ends
when its standard input is closed. Replies are lines of JSON on standard output; what libraries print goes to standard
error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 2**20
REALTIME_PRIORITY = 5


class Stopwatch:
    """Seconds of wall clock and peak memory of what happens between :meth:`begin` and :meth:`end`.

    Memory is the resident set of the process and those that it started, each at its own peak, or what torch holds on
    the GPU if there is one. ``realtime`` gives the
    measured work the processors before anything else on the machine (needs root).
    """

    def __init__(self, realtime: bool) -> None:
        self.realtime = realtime
        self._replies = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._loaded_mib = -1.0
        self._start = 0.0

    def begin(self) -> None:
        """Wait for the word to go."""
        if self._loaded_mib < 0:
            self._loaded_mib = _memory_mib("VmRSS")
            self._reply(ready=True)
        if not sys.stdin.readline():
            sys.exit()
        _reset_peak()
        if self.realtime:
            _schedule(os.SCHED_RR, REALTIME_PRIORITY)
        self._start = time.perf_counter()

    def end(self, **figures: float) -> None:
        """``figures`` are what the work amounted to, e.g. ``tokens``."""
        _synchronize()
        seconds = time.perf_counter() - self._start
        if self.realtime:
            _schedule(os.SCHED_OTHER, 0)
        peak = _memory_mib("VmHWM")
        self._reply(seconds=seconds, peak_mib=peak, added_mib=peak - self._loaded_mib, **figures)

    def _reply(self, **values: object) -> None:
        self._replies.write(json.dumps(values) + "\n")


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _synchronize() -> None:
    if (cuda := _cuda()) is not None:
        cuda.synchronize()


def _reset_peak() -> None:
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
        return
    for process in _processes():
        with suppress(OSError):
            (process / "clear_refs").write_text("5")


def _memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak since it was reset), with their counterparts on a GPU."""
    if (cuda := _cuda()) is not None:
        return (cuda.memory_allocated() if field == "VmRSS" else cuda.max_memory_allocated()) / MIB
    return sum(_status_mib(process, field) for process in _processes())


def _status_mib(process: Path, field: str) -> float:
    with suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return 0.0


def _processes() -> Iterator[Path]:
    """This process and all that it started, as folders of /proc."""
    pending = [os.getpid()]
    while pending:
        process = Path(f"/proc/{pending.pop()}")
        yield process
        for task in (process / "task").iterdir():
            with suppress(OSError):
                pending += map(int, (task / "children").read_text().split())


def _schedule(policy: int, priority: int) -> None:
    """For every thread of these processes."""
    for process in _processes():
        for task in (process / "task").iterdir():
            with suppress(OSError):
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))


def main() -> None:
    target, arguments, realtime = sys.argv[1:]
    watch = Stopwatch(realtime == "realtime")
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(watch, **json.loads(arguments))


if __name__ == "__main__":
    main()
