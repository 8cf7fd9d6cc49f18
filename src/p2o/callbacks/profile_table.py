"""``debug=profile``: where the time and memory of each part of a run went."""

from __future__ import annotations

from typing import Any

from lightning import Trainer

from p2o import profile
from p2o.algorithm.module import P2OModule
from p2o.callbacks.hooks import P2OCallback


class ProfileTable(P2OCallback):
    """Logs what was spent since the last table, after each round, validation and prompt phase."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        profile.report(f"round {module.state.step}")

    def on_plain_validation_end(self, trainer: Trainer, module: P2OModule, accuracy: float, rollouts: Any) -> None:
        profile.report(f"the validation at step {module.state.step}")

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Any) -> None:
        profile.report(f"the prompt phase of epoch {module.state.epoch}")
