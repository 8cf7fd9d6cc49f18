"""Answers worth reading, in TensorBoard: the same question answered plainly and under a template."""

from __future__ import annotations

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from p2o.algorithm.module import Alternation, P2OModule
from p2o.callbacks.hooks import P2OCallback
from p2o.reporting.samples import pairs
from p2o.reporting.template_pool import template_texts
from p2o.reporting.texts import pairs_html


class RolloutSamples(P2OCallback):
    """Shows the ``count`` most telling pairs of each epoch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_alternation_end(self, trainer: Trainer, module: P2OModule, alternation: Alternation) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if boards:
            shown = pairs(module.run_dir / "rollouts", module.state.epoch, self.count)
            text = pairs_html(shown, template_texts(module.run_dir))
            for board in boards:
                board.add_text("rollouts, plain and templated", text, module.state.step)
