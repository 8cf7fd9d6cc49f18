"""A stop costs no round whose answers are there."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer

from p2o.algorithm.module import P2OModule
from p2o.callbacks.checkpointing import Checkpointing
from p2o.callbacks.hooks import P2OCallback
from p2o.stop import Stop
from p2o.types import Group


class GracefulStop(P2OCallback):
    """Lets a stop wait, once a round's answers are there, until the round is in a checkpoint.

    If the checkpoint on disk is the one that the round began at, the update may be cut: the next launch begins the
    round again. Its place is behind ``checkpoints``.
    """

    def __init__(self, stop: Stop, checkpoints: Checkpointing) -> None:
        self.stop = stop
        self.checkpoints = checkpoints

    def on_sampling_end(self, trainer: Trainer, module: P2OModule, groups: Sequence[Group]) -> None:
        self.stop.deferred = True

    def on_micro_batch_end(self, trainer: Trainer, module: P2OModule, done: int, total: int) -> None:
        if self.checkpoints.saved_step == module.state.step:
            self.stop.check()

    def on_position(self, trainer: Trainer, module: P2OModule, must_keep: bool) -> None:
        self.stop.deferred = False
        self.stop.check()
