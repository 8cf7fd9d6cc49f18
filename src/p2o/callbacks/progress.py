"""Where a run stands, on the terminal: bars with time left, or plain lines if nobody watches."""

from __future__ import annotations

import time
from statistics import fmean
from typing import Any

from lightning import LightningModule, Trainer
from rich.console import Console

from p2o.algorithm.advantages import Signal
from p2o.algorithm.module import Alternation, P2OModule
from p2o.callbacks.hooks import P2OCallback
from p2o.evolution.monitor import EvolutionProgress
from p2o.logs import TERMINAL, progress_bars, progress_line
from p2o.reporting.epoch_summary import epoch_line, epoch_summary
from p2o.types import Phase


class Progress(P2OCallback):
    """A bar for the run, and below it one for the part that is under way.

    On a terminal the bars are live. Elsewhere (a log file, a batch system) each round and each epoch is one plain
    line.
    """

    def __init__(self, rounds: int, *, console: Console = TERMINAL) -> None:
        """``rounds`` is the number of rounds of the whole run."""
        self.console = console
        self._rounds = rounds
        self._bars = progress_bars(console)
        self._run = self._bars.add_task("run", total=rounds, note="")
        self._part = self._bars.add_task("", total=None, visible=False, note="")
        self._started = time.monotonic()
        self._first: int | None = None

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._bars.start()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self._bars.update(self._part, visible=False)
        step, groups = module.state.step, outputs["groups"]
        reward = fmean(reward for scored in groups for reward in scored.group.rewards)
        live = sum(scored.signal is Signal.LIVE for scored in groups)
        note = f"reward {reward:.2f}  signal {live}/{len(groups)}  grad {outputs['metrics']['grad_norm']:.2g}"
        if self._first is None:  # a resumed run starts in the middle: time left is judged by its own rounds
            self._first = step - 1
            self._bars.reset(self._run, total=self._rounds, completed=self._first)
        self._bars.update(self._run, completed=step, note=note)
        if not self.console.is_terminal:
            seconds = (time.monotonic() - self._started) / (step - self._first) * (self._rounds - step)
            progress_line(self.console, f"round {step}/{self._rounds}  {note}", seconds)

    def on_rollout_end(self, trainer: Trainer, module: P2OModule, phase: Phase, done: int, total: int) -> None:
        if phase is not Phase.EVOLUTION:
            self._show("validation" if phase is Phase.VALIDATION else "rollouts", done, total)

    def on_micro_batch_end(self, trainer: Trainer, module: P2OModule, done: int, total: int) -> None:
        self._show("update", done, total)

    def on_evolution_progress(self, trainer: Trainer, module: P2OModule, at: EvolutionProgress) -> None:
        self._show("evolution", at.metric_calls, at.budget, f"best dev {at.best_dev_score:.2f}")

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Alternation) -> None:
        """A line that stays: what an epoch did."""
        self._bars.update(self._part, visible=False)
        progress_line(self.console, epoch_line(epoch_summary(module.state, alternation)))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._bars.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._bars.stop()

    def _show(self, name: str, done: int, total: int, note: str = "") -> None:
        part = self._bars.tasks[self._part]
        if not part.visible or part.description.strip() != name:
            self._bars.reset(self._part, total=total, visible=True, description=f"  {name}")
        self._bars.update(self._part, completed=done, total=total, note=note)
