"""Watching gepa's loop: why it stops, how far it is, what it logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gepa.core.callbacks import BudgetUpdatedEvent, CandidateRejectedEvent, IterationEndEvent, ValsetEvaluatedEvent
from gepa.core.state import GEPAState

from p2o.config.schema import GepaConfig
from p2o.evolution.proposals import Allowance, TemplateReflection


@dataclass(frozen=True, slots=True)
class EvolutionProgress:
    """Where an evolution stands. ``metric_calls`` may end above ``budget``: an iteration is always finished."""

    iteration: int
    metric_calls: int
    budget: int
    best_dev_score: float
    pool_size: int


class Watch:
    """gepa's stop condition and callbacks in one. ``reason`` says why it stopped the loop, None if it did not."""

    def __init__(
        self,
        config: GepaConfig,
        budget: int,
        allowance: Allowance,
        reflection: TemplateReflection,
        progress: Callable[[EvolutionProgress], None] | None,
    ) -> None:
        self.config = config
        self.max_metric_calls = budget
        self.allowance = allowance
        self.reflection = reflection
        self.reason: str | None = None
        self.not_better = 0
        self._progress = progress
        self._proposed = 0
        self._failures = 0
        self.iterations = 0
        self._metric_calls = 0
        self._best = 0.0
        self._pool_size = 0

    def __call__(self, gepa_state: GEPAState) -> bool:
        """Whether to stop before the next iteration. Raises what the reflection raised, which gepa swallows."""
        if self.reflection.error is not None:
            raise self.reflection.error
        reasons = {
            "dev_solved": all(best >= self.config.solve_threshold for best in gepa_state.pareto_front_valset.values()),
            "run_budget": not self.allowance.proposals(1, spent=gepa_state.total_num_evals),
            "budget": gepa_state.total_num_evals >= self.max_metric_calls,
            "max_iterations": gepa_state.i + 1 >= self.config.max_iterations,
            "no_proposals": self._failures >= self.config.max_failures,
        }
        self.reason = next((reason for reason, holds in reasons.items() if holds), None)
        return self.reason is not None

    def on_valset_evaluated(self, event: ValsetEvaluatedEvent) -> None:
        self._pool_size = event["candidate_idx"] + 1
        self._best = max(self._best, event["average_score"])
        self._metric_calls = max(self._metric_calls, event["num_examples_evaluated"])
        self._report()

    def on_budget_updated(self, event: BudgetUpdatedEvent) -> None:
        self._metric_calls = event["metric_calls_used"]
        self._report()

    def on_candidate_rejected(self, event: CandidateRejectedEvent) -> None:
        self.not_better += 1

    def on_iteration_end(self, event: IterationEndEvent) -> None:
        self.iterations = event["iteration"]
        self._failures = self._failures + 1 if self.reflection.proposed == self._proposed else 0
        self._proposed = self.reflection.proposed
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(
                EvolutionProgress(
                    iteration=self.iterations,
                    metric_calls=self._metric_calls,
                    budget=self.max_metric_calls,
                    best_dev_score=self._best,
                    pool_size=self._pool_size,
                )
            )


class FileLog:
    """gepa's logger: writes to a file of the run, not to the terminal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def log(self, message: str) -> None:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{message}\n")
