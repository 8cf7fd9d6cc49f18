"""How far an evaluation is: a bar with the time left, or a line a chunk if there is not a terminal."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from p2o.logs import TERMINAL


class EvaluationProgress:
    """A context manager. ``total`` counts the answers of all sets, ``done`` those that earlier launches made."""

    def __init__(self, total: int, done: int, *, enabled: bool = True, console: Console = TERMINAL) -> None:
        self.console = console
        self._total = total
        self._before = self._done = done
        self._tokens = 0
        self._started = time.monotonic()
        self._lines = enabled and not console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._task = self._bars.add_task("answers", total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def answering(self, name: str, done_of_chunk: int) -> None:
        """``done_of_chunk`` answers of the current chunk of the set ``name`` are made."""
        self._bars.update(self._task, description=name, completed=self._done + done_of_chunk)

    def chunk_done(self, name: str, answers: int, tokens: int) -> None:
        """A chunk of ``answers`` with ``tokens`` generated tokens is on disk."""
        self._done += answers
        self._tokens += tokens
        seconds = max(time.monotonic() - self._started, 1e-9)
        note = f"{self._tokens / seconds:.0f} tokens/s"
        self._bars.update(self._task, description=name, completed=self._done, note=note)
        if self._lines:
            left = int(seconds / (self._done - self._before) * (self._total - self._done))
            line = f"{name}: {self._done}/{self._total} answers  {note}  {left // 60}:{left % 60:02d} left"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
