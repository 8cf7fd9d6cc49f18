"""What a run writes as it goes: rollouts, metrics and templates, to its folder and to Lightning's loggers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from p2o import json_lines
from p2o.algorithm.module import Alternation, P2OModule
from p2o.algorithm.state import RunState
from p2o.callbacks.hooks import P2OCallback
from p2o.config.identity import WITHOUT_IDENTITY, flat
from p2o.config.load import to_plain
from p2o.config.schema import Config
from p2o.environment import read_overrides
from p2o.evolution.gepa_phase import Evolution
from p2o.faults import fault_point
from p2o.files import write_json
from p2o.logs import TERMINAL
from p2o.reporting.closing import closing_words
from p2o.reporting.epoch_summary import EpochSummary, epoch_summary
from p2o.reporting.html_report import write_report
from p2o.reporting.rollout_log import RolloutLog
from p2o.reporting.scalars import (
    LAYOUT,
    Scalars,
    epoch_scalars,
    evolution_scalars,
    ledger_scalars,
    rollout_scalars,
    round_scalars,
    under,
)
from p2o.reporting.summary import summary
from p2o.reporting.template_pool import read_pools, rewind_pools, write_pool
from p2o.reporting.texts import templates_html
from p2o.types import Assignment, Rollout


class RunLog(P2OCallback):
    """Writes a run's story as it goes. One step axis for both phases: ``state.step``, the rounds of the whole run.

    Every scalar goes to the loggers and, as one line per step, to ``metrics.jsonl``, which the report page reads.
    ``loggers`` are those of the trainer; TensorBoard's also get charts and texts. Without any, all files are written
    all the same.
    """

    def __init__(self, run_dir: Path, config: Config, loggers: Sequence[Logger] = ()) -> None:
        self.run_dir = run_dir
        self.config = config
        self.loggers = loggers
        self.metrics = run_dir / "metrics.jsonl"
        self.rollouts = RolloutLog(run_dir / "rollouts")

    @property
    def boards(self) -> list[SummaryWriter]:
        """TensorBoard's writers."""
        return [logger.experiment for logger in self.loggers if isinstance(logger, TensorBoardLogger)]

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Wind the files back to the state that the run starts or continues from: what came later will come again."""
        self.rollouts.rewind(module.state.epoch, module.state.round)
        rewind_pools(self.run_dir, module.state.epoch)
        for board in self.boards:
            board.add_custom_scalars(LAYOUT)
        self._write_summary(module.state, "running")

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        """One round of the policy phase, counted in ``module.state`` already."""
        state = module.state
        self.rollouts.append(outputs["groups"], epoch=state.epoch, round=state.round, step=state.step)
        fault_point("rollouts logged")
        scalars = (
            under("rollout", round_scalars(outputs["groups"]))
            | under("policy", outputs["metrics"])
            | under("engine", module.sampler.engine.scalars())
            | under("time", outputs["seconds"])
            | under("ledger", ledger_scalars(state.ledger))
        )
        self._log(state.step, state.epoch, scalars)
        fault_point("the round reported")

    def on_plain_validation_end(
        self, trainer: Trainer, module: P2OModule, accuracy: float, rollouts: Sequence[Rollout]
    ) -> None:
        scalars = {"validation/accuracy": accuracy} | under("validation", rollout_scalars(rollouts))
        self._log(module.state.step, module.state.epoch, scalars)

    def on_evolution_end(
        self, trainer: Trainer, module: P2OModule, evolution: Evolution, assignment: Assignment
    ) -> None:
        """What a prompt phase found: ``pool.json``, ``assignment.json`` and a table."""
        state = module.state
        pool = write_pool(self.run_dir, state.epoch, state.step, evolution, assignment)
        fault_point("pool and assignment")
        self._log(state.step, state.epoch, under("evolution", evolution_scalars(evolution, len(assignment.templates))))
        for board in self.boards:
            board.add_text("templates", templates_html(pool), state.step)

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Alternation) -> None:
        self.end_epoch(module.state, epoch_summary(module.state, alternation))

    def end_epoch(self, state: RunState, epoch: EpochSummary) -> None:
        """The end of an epoch, prompt phase included."""
        state.epochs.append(dataclasses.asdict(epoch))
        self.rollouts.close_epoch(epoch.epoch)
        self._log(epoch.step, epoch.epoch, under("epoch", epoch_scalars(epoch)))
        self._write_summary(state, "running")
        fault_point("the epoch reported")

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        """Hyperparameters with final metrics, the last summary, the page, and what was learnt on the terminal.

        A run that a budget ended is ``stopped``, any other ``completed``.
        """
        state = module.state
        value = self._write_summary(state, "stopped" if state.stop_reason else "completed")
        fault_point("the last summary")
        shown = hyperparameters(to_plain(self.config), read_overrides(self.run_dir))
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(shown, final_metrics(value), state.step)
                logger.experiment.flush()
            else:
                logger.log_hyperparams(shown)
                logger.log_metrics(final_metrics(value), state.step)
        write_report([self.run_dir], self.run_dir / "report.html")
        fault_point("the page written")
        TERMINAL.print(closing_words(value, self.run_dir), soft_wrap=True)  # paths stay whole
        fault_point("all told")

    def _log(self, step: int, epoch: int, scalars: Scalars) -> None:
        finite = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        json_lines.append(self.metrics, [{"step": step, "epoch": epoch, **finite}])
        fault_point("metrics logged")
        for logger in self.loggers:
            logger.log_metrics(scalars, step)

    def _write_summary(self, state: RunState, status: str) -> dict[str, Any]:
        templates = [template for pool in read_pools(self.run_dir) for template in pool["pool"]]
        value = summary(state, self.config, status, templates)
        write_json(self.run_dir / "summary.json", value)
        return value


def hyperparameters(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, int | float | str]:
    """The configuration as dotted keys, without unset ones and without where it was written.

    TensorBoard sorts them by name and shows the first few: capitals bring what tells runs apart to the front, of which
    the overrides tell the most. What they say that does not make another study, and what has a column, is left out.
    """
    first = {"name": "Experiment", "scale": "Scale", "seed": "Seed"}
    told = WITHOUT_IDENTITY | {"seed", "experiment", "scale", "hydra.mode"}
    own = sorted(item for item in overrides if item.lstrip("+~").split("=")[0] not in told)
    return {"Overrides": " ".join(own) or "none"} | {
        first.get(key, key): value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        for key, value in flat(config).items()
        if value is not None and key != "run_dir"
    }


def final_metrics(value: Mapping[str, Any]) -> dict[str, float]:
    """What a sweep compares, from the value of ``summary.json``; what was never measured is left out."""
    accuracy, ledger, epochs = value["val_accuracy"], value["ledger"], value["epochs"]
    metrics = {
        "final/val_accuracy": accuracy["final"],
        "final/best_val_accuracy": accuracy["best"],
        "final/initial_val_accuracy": accuracy["initial"],
        "final/hard": epochs[-1]["hard"] if epochs else None,
        "final/generated_tokens": ledger["generated_tokens"]["total"],
        "final/trained_tokens": ledger["trained_tokens"]["total"],
        "final/seconds": ledger["seconds"]["total"],
    }
    return {name: value for name, value in metrics.items() if value is not None}
