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
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 2**20
REALTIME_PRIORITY = 5


class Stopwatch:
    """Seconds of wall clock and peak memory of what happens between :meth:`begin` and :meth:`end`.

    Memory is the process's resident set, or what torch holds on the GPU where there is one. ``realtime`` gives the
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
    with suppress(OSError):  # elsewhere than on Linux the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak since it was reset), with their counterparts on a GPU."""
    if (cuda := _cuda()) is not None:
        return (cuda.memory_allocated() if field == "VmRSS" else cuda.max_memory_allocated()) / MIB
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def _schedule(policy: int, priority: int) -> None:
    """For every thread of this process and of the processes that it started."""
    pending = [os.getpid()]
    while pending:
        tasks = Path(f"/proc/{pending.pop()}/task")
        for task in tasks.iterdir():
            with suppress(OSError):
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))
                pending += map(int, (task / "children").read_text().split())


def main() -> None:
    target, arguments, realtime = sys.argv[1:]
    watch = Stopwatch(realtime == "realtime")
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(watch, **json.loads(arguments))


if __name__ == "__main__":
    main()
