"""Where a run stands, on the terminal: bars with time left, or plain lines if nobody watches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from p2o.algorithm.advantages import GroupAdvantages, Signal
from p2o.algorithm.module import Alternation, P2OModule
from p2o.callbacks.hooks import P2OCallback
from p2o.evolution.monitor import EvolutionProgress
from p2o.logs import TERMINAL
from p2o.reporting.epoch_summary import epoch_line, epoch_summary
from p2o.types import Phase

PARTS = ("evolution", "rollouts", "validation", "update")
"""What can be under way; one bar is shown at a time."""


class Note(ProgressColumn):
    """A short remark behind a bar, such as the best score so far."""

    def render(self, task: Task) -> str:
        return str(task.fields.get("note", ""))


class Progress(P2OCallback):
    """Bars for the run, and below it for the part that is under way.

    On a terminal the bars are live. Elsewhere (a log file, a batch system) each round and each epoch is one plain
    line.
    """

    def __init__(self, rounds: int, *, console: Console = TERMINAL) -> None:
        """``rounds`` is the number of rounds of the whole run."""
        self.console = console
        self._rounds = rounds
        self._live = console.is_terminal
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

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._bars.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, P2OModule)
        self.round_done(module.state.step, outputs["groups"], outputs["metrics"])

    def round_done(self, step: int, groups: Sequence[GroupAdvantages], metrics: Mapping[str, float]) -> None:
        """``step`` rounds of the run are done."""
        self._hide_parts()
        rewards = [reward for scored in groups for reward in scored.group.rewards]
        live = sum(scored.signal is Signal.LIVE for scored in groups)
        note = f"reward {fmean(rewards):.2f}  signal {live}/{len(groups)}  grad {metrics['grad_norm']:.2g}"
        if self._first is None:  # a resumed run starts in the middle: time left is judged by its own rounds
            self._first = step - 1
            self._bars.reset(self._run, total=self._rounds, completed=self._first)
        self._bars.update(self._run, completed=step, note=note)
        if not self._live:
            seconds = (time.monotonic() - self._started) / (step - self._first) * (self._rounds - step)
            left = f"{int(seconds // 60)}:{int(seconds % 60):02d} left"
            self._print(f"round {step}/{self._rounds}  {note}  {left}")

    def on_rollout_end(self, trainer: Trainer, module: P2OModule, phase: Phase, done: int, total: int) -> None:
        if phase is not Phase.EVOLUTION:
            self._show("validation" if phase is Phase.VALIDATION else "rollouts", done, total)

    def on_micro_batch_end(self, trainer: Trainer, module: P2OModule, done: int, total: int) -> None:
        self._show("update", done, total)

    def on_evolution_progress(self, trainer: Trainer, module: P2OModule, at: EvolutionProgress) -> None:
        self._show("evolution", at.metric_calls, at.budget, f"best dev {at.best_dev_score:.2f}")

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Alternation) -> None:
        """A line that stays: what an epoch did."""
        self._hide_parts()
        self._print(epoch_line(epoch_summary(module.state, alternation)))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _show(self, name: str, done: int, total: int, note: str = "") -> None:
        shown = self._parts[name]
        if not self._bars.tasks[shown].visible:
            self._hide_parts()
            self._bars.reset(shown, total=total, visible=True)
        self._bars.update(shown, completed=done, total=total, note=note)

    def _hide_parts(self) -> None:
        for task in self._parts.values():
            self._bars.update(task, visible=False)

    def _stop(self) -> None:
        self._hide_parts()
        self._bars.stop()

    def _print(self, text: str) -> None:
        self.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
