"""Everything that a run tells: TensorBoard, files in its folder, and a table at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from p2o import json_lines
from p2o.config.identity import flat
from p2o.config.load import to_plain
from p2o.config.schema import Config
from p2o.environment import read_overrides
from p2o.files import write_json
from p2o.logs import TERMINAL
from p2o.reporting.closing import closing_table
from p2o.reporting.html_report import write_report
from p2o.reporting.rollout_log import Advantages, RolloutLog
from p2o.reporting.runs import IGNORED
from p2o.reporting.samples import pairs
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
from p2o.reporting.template_pool import read_pools, rewind_pools, template_texts, write_pool
from p2o.reporting.texts import pairs_markdown, templates_markdown
from p2o.types import Assignment, Group, Rollout

if TYPE_CHECKING:
    from p2o.algorithm.state import EpochSummary, RunState
    from p2o.evolution.gepa_phase import Evolution


class Logger(Protocol):
    """The part of Lightning's ``TensorBoardLogger`` that is used."""

    @property
    def experiment(self) -> SummaryWriter: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(
        self, params: dict[str, Any], metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None: ...


class Reporter:
    """Writes a run's story as it goes. One step axis for both phases: ``state.step``, the rounds of the whole run.

    Every scalar goes to TensorBoard and, as one line a step, to ``metrics.jsonl``, which the report page reads.
    Without a logger all files are written all the same.
    """

    def __init__(self, run_dir: Path, config: Config, *, logger: Logger | None) -> None:
        self.run_dir = run_dir
        self.config = config
        self.logger = logger
        self.metrics = run_dir / "metrics.jsonl"
        self.rollouts = RolloutLog(run_dir / "rollouts")

    def start(self, state: RunState) -> None:
        """Wind the files back to ``state``, where the run starts or goes on: what came later will come again."""
        self.rollouts.rewind(state.epoch, state.round)
        rewind_pools(self.run_dir, state.epoch)
        json_lines.rewind(self.metrics, lambda row: row["step"] <= state.step)
        if self.logger is not None:
            self.logger.experiment.add_custom_scalars(LAYOUT)
        self._write_summary(state, "running")

    def round(
        self,
        state: RunState,
        groups: Sequence[Group],
        metrics: Mapping[str, float],
        *,
        engine: Mapping[str, float] | None = None,
        seconds: Mapping[str, float],
        advantages: Advantages | None = None,
    ) -> Scalars:
        """One round of the policy phase, counted in ``state`` already. Returns all of its scalars by full name.

        ``metrics`` are the update's, ``engine`` what the engine says of itself; ``seconds`` how long each part of the
        round took.
        """
        self.rollouts.append(groups, epoch=state.epoch, round=state.round, step=state.step, advantages=advantages)
        scalars = (
            under("rollout", round_scalars(groups))
            | under("policy", metrics)
            | under("engine", engine or {})
            | under("time", seconds)
            | under("ledger", ledger_scalars(state.ledger))
        )
        self._log(state.step, state.epoch, scalars)
        return scalars

    def validation(self, state: RunState, accuracy: float, rollouts: Sequence[Rollout]) -> None:
        """Accuracy on the held-out questions, asked plainly."""
        self._log(
            state.step, state.epoch, {"validation/accuracy": accuracy} | under("validation", rollout_scalars(rollouts))
        )

    def evolution(self, state: RunState, evolution: Evolution, assignment: Assignment) -> None:
        """What the prompt phase of epoch ``state.epoch`` found: ``pool.json``, ``assignment.json`` and a table."""
        pool = write_pool(self.run_dir, state.epoch, state.step, evolution, assignment)
        self._log(state.step, state.epoch, under("evolution", evolution_scalars(evolution, len(assignment.templates))))
        if self.logger is not None:
            self.logger.experiment.add_text("templates", templates_markdown(pool), state.step)

    def epoch(self, state: RunState, epoch: EpochSummary) -> str:
        """The end of an epoch, prompt phase included. Returns a line for the terminal."""
        self.rollouts.close_epoch(epoch.epoch)
        self._log(epoch.step, epoch.epoch, under("epoch", epoch_scalars(epoch)))
        if self.logger is not None and self.config.logger.samples > 0:
            shown = pairs(self.rollouts.folder, epoch.epoch, self.config.logger.samples)
            text = pairs_markdown(shown, template_texts(self.run_dir))
            self.logger.experiment.add_text("rollouts, plain and templated", text, epoch.step)
        self._write_summary(state, "running")
        return epoch_line(epoch)

    def finish(self, state: RunState) -> None:
        """The run is over: hyperparameters with final metrics, the last summary, the page, a table of what was learnt.

        A run that a budget ended is ``stopped``, any other ``completed``.
        """
        value = self._write_summary(state, "stopped" if state.stop_reason else "completed")
        if self.logger is not None:
            shown = hyperparameters(to_plain(self.config), read_overrides(self.run_dir))
            self.logger.log_hyperparams(shown, final_metrics(value), state.step)
            self.logger.experiment.flush()
        write_report([self.run_dir], self.run_dir / "report.html")
        TERMINAL.print(closing_table(value, self.run_dir))

    def flush(self) -> None:
        """Hand everything that was logged to the operating system."""
        if self.logger is not None:
            self.logger.experiment.flush()

    def _log(self, step: int, epoch: int, scalars: Scalars) -> None:
        finite = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        json_lines.append(self.metrics, [{"step": step, "epoch": epoch, **finite}])
        if self.logger is not None:
            self.logger.log_metrics(scalars, step)

    def _write_summary(self, state: RunState, status: str) -> dict[str, Any]:
        templates = [template for pool in read_pools(self.run_dir) for template in pool["pool"]]
        value = summary(state, self.config, status, templates)
        write_json(self.run_dir / "summary.json", value)
        return value


def epoch_line(epoch: EpochSummary) -> str:
    """An epoch in a line: ``epoch 2  reward 0.41  accuracy 0.44  hard 30 (12 all wrong)  templates 3 (best dev …)``."""
    parts = [f"epoch {epoch.epoch}", f"reward {epoch.train_reward:.2f}"]
    if epoch.val_accuracy is not None:
        parts.append(f"accuracy {epoch.val_accuracy:.3f}")
    parts.append(f"hard {epoch.hard} ({epoch.hard_all_fail} all wrong)")
    if epoch.templates_best_dev is not None:
        parts.append(
            f"templates {epoch.templates} (best dev {epoch.templates_best_dev:.2f}, empty {epoch.dev_seed_score:.2f})"
        )
    return "  ".join(parts) + (f"  [{epoch.note}]" if epoch.note else "")


def hyperparameters(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, int | float | str]:
    """The configuration as dotted keys, without unset ones and without where it was written.

    TensorBoard sorts them by name and shows the first few: capitals bring what tells runs apart to the front, of which
    the overrides tell the most. What they say that does not make another study, and what has a column, is left out.
    """
    first = {"name": "Experiment", "scale": "Scale", "seed": "Seed"}
    told = IGNORED | {"experiment", "scale", "hydra.mode"}
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
