"""Where a run stands, on the terminal: bars with time left, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

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

from p2o.logs import TERMINAL

if TYPE_CHECKING:
    from p2o.algorithm.state import RunState
    from p2o.evolution.gepa_phase import EvolutionProgress

Done = Callable[[int], None]
"""Called with the number of pieces that are done so far."""

NOTED = {"rollout/reward": "reward {:.2f}", "rollout/live": "live {:.0f}", "policy/grad_norm": "grad {:.2g}"}
"""Which scalars of a round are worth a look at the terminal."""

PARTS = ("evolution", "rollouts", "validation", "update")
"""From top to bottom: an evolution's rollouts are shown below it."""


class Note(ProgressColumn):
    """A short remark behind a bar, such as the best score so far."""

    def render(self, task: Task) -> str:
        return str(task.fields.get("note", ""))


class Progress:
    """Bars for the run, and below it for the part that is going on; a context manager.

    On a terminal the bars are live. Elsewhere (a log file, a batch system) each round and each epoch is one plain
    line. ``enabled=False`` says nothing at all.
    """

    def __init__(self, rounds: int, *, enabled: bool = True, console: Console = TERMINAL) -> None:
        """``rounds`` is the number of rounds of the whole run."""
        self.console = console
        self._rounds = rounds
        self._live = enabled and console.is_terminal
        self._lines = enabled and not console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            Note(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._run = self._bars.add_task("run", total=rounds)
        self._parts = {name: self._bars.add_task(f"  {name}", total=None, visible=False) for name in PARTS}
        self._started = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hide_parts()
        self._bars.stop()

    def round_done(self, state: RunState, scalars: Mapping[str, float]) -> None:
        """``state.step`` rounds of the run are done; ``scalars`` are those of the last one, see :data:`NOTED`."""
        self._hide_parts()
        note = "  ".join(text.format(scalars[name]) for name, text in NOTED.items() if name in scalars)
        if self._first is None:  # a resumed run starts in the middle: time left is judged by its own rounds
            self._first = state.step - 1
            self._bars.reset(self._run, total=self._rounds, completed=self._first)
        self._bars.update(self._run, completed=state.step, note=note)
        if self._lines:
            seconds = (time.monotonic() - self._started) / (state.step - self._first) * (self._rounds - state.step)
            left = f"{int(seconds // 60)}:{int(seconds % 60):02d} left"
            self._print(f"round {state.step}/{self._rounds}  {note}  {left}")

    def epoch_done(self, text: str) -> None:
        """A line that stays: what an epoch did."""
        self._hide_parts()
        if self._lines or self._live:
            self._print(text)

    def rollouts(self, total: int) -> Done:
        return self._part("rollouts", total)

    def validation(self, total: int) -> Done:
        return self._part("validation", total)

    def update(self) -> Callable[[int, int], None]:
        """Takes the micro-batches done and their number."""
        task = self._start("update", None)
        return lambda done, total: self._bars.update(task, completed=done, total=total)

    def evolution(self) -> Callable[[EvolutionProgress], None]:
        """Shows the metric calls used, of their budget, and the best dev score so far."""
        task = self._start("evolution", None)

        def report(at: EvolutionProgress) -> None:
            note = f"best dev {at.best_dev_score:.2f}"
            self._bars.update(task, completed=at.metric_calls, total=at.budget, note=note)

        return report

    def _part(self, name: str, total: int) -> Done:
        task = self._start(name, total)
        return lambda done: self._bars.update(task, completed=done)

    def _start(self, name: str, total: int | None) -> TaskID:
        self._hide_parts(but="evolution")  # the rollouts below it are its own
        self._bars.reset(self._parts[name], total=total, visible=True, note="")
        return self._parts[name]

    def _hide_parts(self, but: str = "") -> None:
        for name, task in self._parts.items():
            if name != but:
                self._bars.update(task, visible=False)

    def _print(self, text: str) -> None:
        self.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
