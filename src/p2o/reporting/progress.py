"""Where a run stands, on the terminal: bars with time left, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

Advance = Callable[[int], None]
"""Called with the number of newly finished pieces."""


class Note(ProgressColumn):
    """A short remark behind a bar, such as the best score so far."""

    def render(self, task: Task) -> str:
        return task.fields.get("note", "")


class Progress:
    """Bars for the run, and below it for the part that is going on; a context manager.

    On a terminal the bars are live. Elsewhere (a log file, a batch system) each round and each epoch is one plain
    line. ``enabled=False`` says nothing at all.
    """

    def __init__(self, rounds: int, *, enabled: bool = True, console: Console | None = None) -> None:
        """``rounds`` is the number of rounds of the whole run."""
        self.console = console or Console(stderr=True)
        self._lines = enabled and not self.console.is_terminal
        self._rounds = rounds
        self._bars = Bars(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            Note(),
            console=self.console,
            disable=not enabled or self._lines,
            transient=True,
        )
        self._run = self._bars.add_task("run", total=rounds)
        self._parts: dict[str, TaskID] = {}
        self._started = time.monotonic()
        self._first = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hide_parts()
        self._bars.stop()

    def resume(self, step: int) -> None:
        """Start at ``step`` rounds done; the time left is judged by the rounds that follow."""
        self._first = step
        self._bars.reset(self._run, total=self._rounds, completed=step)
        self._started = time.monotonic()

    def round(self, step: int, note: str = "") -> None:
        """``step`` rounds of the run are done; ``note`` says in a few words how the last one went."""
        self._hide_parts()
        self._bars.update(self._run, completed=step, note=note)
        if self._lines:
            self._print(f"round {step}/{self._rounds}  {note}  {self._time_left(step)}")

    def epoch(self, text: str) -> None:
        """A line that stays: what an epoch did."""
        self._hide_parts()
        if self._lines or not self._bars.disable:
            self._print(text)

    def rollouts(self, total: int) -> Advance:
        return self._part_of("rollouts", total)

    def validation(self, total: int) -> Advance:
        return self._part_of("validation", total)

    def update(self, total: int) -> Advance:
        """``total`` micro-batches."""
        return self._part_of("update", total)

    def evolution(self, budget: int) -> Callable[[int, float | None], None]:
        """Takes the metric calls used so far, of ``budget``, and the best dev score so far."""
        task = self._start_part("evolution", budget)

        def report(used: int, best: float | None = None) -> None:
            self._bars.update(task, completed=used, note="" if best is None else f"best dev {best:.2f}")

        return report

    def _part_of(self, name: str, total: int) -> Advance:
        task = self._start_part(name, total)
        return lambda count: self._bars.advance(task, count)

    def _start_part(self, name: str, total: int) -> TaskID:
        self._hide_parts()
        if name not in self._parts:
            self._parts[name] = self._bars.add_task(f"  {name}", total=total)
        self._bars.reset(self._parts[name], total=total, visible=True, note="")
        return self._parts[name]

    def _hide_parts(self) -> None:
        for task in self._parts.values():
            self._bars.update(task, visible=False)

    def _time_left(self, step: int) -> str:
        done = step - self._first
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._rounds - step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"

    def _print(self, text: str) -> None:
        self.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
