"""The moments of a run that a callback can hear of, beside Lightning's own.

Lightning calls ``on_fit_start`` (the run begins or continues), ``on_train_batch_end`` (a round is done),
``on_exception`` and ``on_fit_end``. ``outputs`` of a round hold ``groups`` (a list of
:class:`~p2o.algorithm.advantages.GroupAdvantages`), ``metrics`` (the update's, by name) and ``seconds`` (by part of the
round). The module calls the hooks below, of any callback that has them; the position of the run is ``module.state``.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Callback, Trainer

from p2o.algorithm.module import Alternation, P2OModule
from p2o.evolution.gepa_phase import Evolution
from p2o.evolution.monitor import EvolutionProgress
from p2o.types import Assignment, Group, Phase, Rollout


class P2OCallback(Callback):
    """A callback with P2O's hooks, each of which does nothing."""

    def on_rollout_end(self, trainer: Trainer, module: P2OModule, phase: Phase, done: int, total: int) -> None:
        """``done`` of the ``total`` rollouts that were asked for at once have ended."""

    def on_sampling_end(self, trainer: Trainer, module: P2OModule, groups: Sequence[Group]) -> None:
        """A round's answers are there and graded; the update follows."""

    def on_micro_batch_end(self, trainer: Trainer, module: P2OModule, done: int, total: int) -> None:
        """``done`` of the ``total`` completion tokens of an update went forward and backward."""

    def on_plain_validation_end(
        self, trainer: Trainer, module: P2OModule, accuracy: float, rollouts: Sequence[Rollout]
    ) -> None:
        """The held-out questions were answered plainly."""

    def on_evolution_progress(self, trainer: Trainer, module: P2OModule, at: EvolutionProgress) -> None:
        """The evolution of templates has come further."""

    def on_evolution_end(
        self, trainer: Trainer, module: P2OModule, evolution: Evolution, assignment: Assignment
    ) -> None:
        """Templates were evolved, and assigned to the hard questions of the next epoch."""

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Alternation) -> None:
        """An epoch ends, its prompt phase included; ``module.state`` is still that of the epoch."""

    def on_position(self, trainer: Trainer, module: P2OModule, must_keep: bool) -> None:
        """The run is at a point that it can be continued from; with ``must_keep`` this one may not be lost."""
