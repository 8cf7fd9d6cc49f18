"""How far an evaluation is: a bar with the time left, or a line per chunk if there is not a terminal."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console

from p2o.logs import TERMINAL, progress_bars, progress_line


class EvaluationProgress:
    """A context manager. ``total`` counts the answers of all sets, ``done`` those that earlier launches made."""

    def __init__(self, total: int, done: int, *, enabled: bool = True, console: Console = TERMINAL) -> None:
        self.console = console
        self._total = total
        self._before = self._done = done
        self._tokens = 0
        self._started = time.monotonic()
        self._lines = enabled and not console.is_terminal
        self._bars = progress_bars(console, enabled=enabled)
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
            left = seconds / (self._done - self._before) * (self._total - self._done)
            progress_line(self.console, f"{name}: {self._done}/{self._total} answers  {note}", left)
