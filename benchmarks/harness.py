"""The measuring side: contestants in processes of their own take turns at the same work.

All contestants of a row are loaded, do the work once to warm up, and then run in turn, A B A B …, so that whatever
else happens on the machine meets all of them alike. One works at a time; the others wait.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
"""Where the package ``benchmarks`` can be imported."""
LONG_S = 30.0
"""Work that takes longer is measured fewer times."""
LONG_RUNS = 3


@dataclass(frozen=True, slots=True)
class Contestant:
    """``target`` is "module:function", called with a Stopwatch and ``arguments``; ``python`` runs it."""

    name: str
    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. The first contestant is measured against each of the others.

    ``rate`` names the figure that is divided by the seconds ("" = the seconds themselves are compared). ``memory``
    names the figure that is compared: peak_mib | added_mib (above what was loaded) | "" (none).
    """

    name: str
    contestants: Sequence[Contestant]
    runs: int = 5
    warm_up: bool = True
    rate: str = ""
    memory: str = "peak_mib"


@dataclass(frozen=True, slots=True)
class Result:
    """A contestant's measurements, one mapping of figures a run."""

    contestant: Contestant
    runs: Sequence[Mapping[str, float]]

    def median(self, figure: str) -> float:
        return statistics.median(run[figure] for run in self.runs)

    def spread(self, figure: str) -> tuple[float, float]:
        values = [run[figure] for run in self.runs]
        return min(values), max(values)

    def speed(self, rate: str) -> float:
        """What is compared, larger is faster."""
        return statistics.median((run[rate] if rate else 1.0) / run["seconds"] for run in self.runs)


class BenchmarkError(RuntimeError):
    """A contestant's process ended; the message has the end of what it printed."""


class _Process:
    """A contestant that is loaded and waits."""

    def __init__(self, contestant: Contestant, log: IO[str], threads: int, realtime: bool) -> None:
        self.contestant = contestant
        self.log = log
        command = [contestant.python, "-m", "benchmarks.stopwatch", contestant.target]
        command += [json.dumps(dict(contestant.arguments)), "realtime" if realtime else "shared"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        self.runs: list[dict[str, float]] = []

    def wait_until_loaded(self) -> None:
        self._read()

    def run(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = "".join(self.log.readlines()[-15:])
            raise BenchmarkError(f"{self.contestant.name} ended with {self.process.returncode}:\n{said}")
        reply: dict[str, float] = json.loads(line)
        return reply


def measure(row: Row, *, threads: int, realtime: bool = False) -> list[Result]:
    """The row's contestants in turn, in the order given.

    A row whose slowest contestant takes more than :data:`LONG_S` is measured :data:`LONG_RUNS` times, the first of them
    being what warms up the others.
    """
    with ExitStack() as stack:
        processes = []
        for contestant in row.contestants:
            log = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            processes.append(_Process(contestant, log, threads, realtime))
            stack.callback(processes[-1].close)
        for process in processes:
            process.wait_until_loaded()
        first = [process.run() for process in processes] if row.warm_up else []
        runs = row.runs
        if any(figures["seconds"] > LONG_S for figures in first):
            runs = min(runs, LONG_RUNS)
            for process, figures in zip(processes, first, strict=True):
                process.runs.append(figures)
        while len(processes[0].runs) < runs:
            for process in processes:
                process.runs.append(process.run())
        return [Result(process.contestant, process.runs) for process in processes]


def table(rows: Iterable[tuple[Row, Sequence[Result]]]) -> str:
    """Markdown: one line a rival, ours beside it."""
    lines = [
        "| what | ours | against | theirs | faster | peak memory, ours | theirs | share | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, (ours, *rivals) in rows:
        for rival in rivals or [None]:
            cells = [row.name, _time(row, ours)]
            if rival is None:
                cells += ["–", "–", "–", _memory(row, ours), "–", "–"]
            else:
                faster = ours.speed(row.rate) / rival.speed(row.rate)
                share = ours.median(row.memory) / rival.median(row.memory) if row.memory else None
                cells += [rival.contestant.name, _time(row, rival), f"{faster:.1f}×"]
                cells += [_memory(row, ours), _memory(row, rival), "–" if share is None else f"{share:.2f}"]
            lines.append("| " + " | ".join([*cells, str(len(ours.runs))]) + " |")
    return "\n".join(lines)


def _time(row: Row, result: Result) -> str:
    if row.rate:
        return f"{result.speed(row.rate):,.0f} {row.rate}/s"
    low, high = result.spread("seconds")
    return f"{result.median('seconds'):.2f} s ({low:.2f}–{high:.2f})"


def _memory(row: Row, result: Result) -> str:
    if not row.memory:
        return "–"
    return f"{result.median(row.memory) / 1024:.2f} GiB"
