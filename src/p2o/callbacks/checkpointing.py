"""Writing checkpoints, continuing from one, and what a run that fails leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from p2o import json_lines
from p2o.algorithm.module import P2OModule
from p2o.algorithm.nonfinite import NonFiniteError
from p2o.callbacks.checkpoint import Checkpoint, CheckpointStore
from p2o.callbacks.failed_batch import failed_batch
from p2o.callbacks.growing_files import file_sizes
from p2o.callbacks.hooks import P2OCallback
from p2o.stop import Stop


class Checkpointing(P2OCallback):
    """``last.ckpt`` every ``every`` rounds, at each change of stage and when a stop is asked for; ``best.ckpt``.

    ``resume_from`` is what the run continues from, if it does. If the run is ended between two checkpoints, the
    rounds that no checkpoint has yet are written, unless it ends inside one's update.
    """

    def __init__(
        self, store: CheckpointStore, run_dir: Path, resume_from: Checkpoint | None, *, every: int, stop: Stop
    ) -> None:
        self.store = store
        self.run_dir = run_dir
        self.resume_from = resume_from
        self.every = every
        self.stop = stop
        self.saved_step: int | None = None
        """The step of the checkpoint on disk."""

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self.saved_step = module.state.step
        if self.resume_from is not None:
            module.policy.load_state_dict(self.resume_from.trainable)
            module.optimizer.load_state_dict(self.resume_from.optimizer)
            module.schedule.load_state_dict(self.resume_from.scheduler)
            self.resume_from = None
            self._mark_best(module)  # in case the run was killed between the checkpoint and the mark

    def on_position(self, trainer: Trainer, module: P2OModule, must_keep: bool) -> None:
        if must_keep or self.stop.asked or module.state.step % self.every == 0:
            self.save(trainer, module)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError):
            path = self.run_dir / "failed_batch.jsonl"
            json_lines.rewrite(path, failed_batch(exception))
            exception.add_note(f"the last of their batches is in {path}")
        if module.resumable and self.saved_step not in (None, module.state.step):
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: P2OModule) -> None:
        """Write ``last.ckpt``; if the newest validation is the best so far, keep it as ``best.ckpt`` too."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        module.state.files = file_sizes(self.run_dir)
        self.store.save(
            Checkpoint(
                trainable=module.policy.state_dict(),
                optimizer=module.optimizer.state_dict(),
                scheduler=module.schedule.state_dict(),
                state=module.state,
            )
        )
        self.saved_step = module.state.step
        self._mark_best(module)

    def _mark_best(self, module: P2OModule) -> None:
        best = module.state.validation.best
        if best is not None and best[0] == module.state.step:
            self.store.mark_best()
