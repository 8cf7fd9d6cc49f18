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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
"""Where the package ``benchmarks`` can be imported."""
LONG_S = 30.0
"""Of work that takes longer the first run counts too instead of being thrown away: the median does not mind it."""


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
    names the figure that is compared: peak_mib | added_mib (above what was loaded) | "" (none). ``outcome`` names a
    figure that is shown beside the time.
    """

    name: str
    contestants: Sequence[Contestant]
    runs: int = 5
    warm_up: bool = True
    rate: str = ""
    memory: str = "peak_mib"
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A contestant's measurements, one mapping of figures a run; ``error`` says why it has fewer than the others."""

    contestant: Contestant
    runs: Sequence[Mapping[str, float]]
    error: str = ""

    def median(self, figure: str) -> float:
        return statistics.median(run[figure] for run in self.runs)

    def speeds(self, rate: str) -> list[float]:
        """What is compared, one a run, larger is faster."""
        return [(run[rate] if rate else 1.0) / run["seconds"] for run in self.runs]

    def speed(self, rate: str) -> float:
        return statistics.median(self.speeds(rate))


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
        self.error = ""

    def wait_until_loaded(self) -> None:
        self._read()

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.runs.append(self._read())

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
    """The row's contestants in turn, in the order given; one that fails is left behind, the others go on."""
    with ExitStack() as stack:
        processes = []
        for contestant in row.contestants:
            log = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            processes.append(_Process(contestant, log, threads, realtime))
            stack.callback(processes[-1].close)
        _each(processes, _Process.wait_until_loaded)
        _each(processes, _Process.run)
        if row.warm_up and not any(process.runs[0]["seconds"] > LONG_S for process in processes if process.runs):
            for process in processes:
                process.runs.clear()
        while any(len(process.runs) < row.runs for process in processes if not process.error):
            _each(processes, _Process.run)
        return [Result(process.contestant, process.runs, process.error) for process in processes]


def _each(processes: Iterable[_Process], call: Callable[[_Process], None]) -> None:
    for process in processes:
        if not process.error:
            try:
                call(process)
            except BenchmarkError as error:
                process.error = str(error)


def table(rows: Iterable[tuple[Row, Sequence[Result]]]) -> str:
    """Markdown: one line a rival, ours beside it. Contestants that failed are left out, with ours the whole row."""
    lines = [
        "| what | ours | against | theirs | faster | peak memory, ours | theirs | share | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, (ours, *others) in rows:
        if ours.error:
            continue
        rivals = [other for other in others if not other.error]
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
        speeds = result.speeds(row.rate)
        return f"{result.speed(row.rate):,.0f} {row.rate}/s ({min(speeds):,.0f}–{max(speeds):,.0f})"
    seconds = [run["seconds"] for run in result.runs]
    outcome = f", {row.outcome} {result.median(row.outcome):.3f}" if row.outcome else ""
    return f"{result.median('seconds'):.2f} s ({min(seconds):.2f}–{max(seconds):.2f}){outcome}"


def _memory(row: Row, result: Result) -> str:
    if not row.memory:
        return "–"
    return f"{result.median(row.memory) / 1024:.2f} GiB"
