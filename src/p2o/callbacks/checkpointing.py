"""Writing checkpoints, continuing from one, and what a run that fails leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from p2o import json_lines
from p2o.algorithm.module import P2OModule
from p2o.algorithm.nonfinite import NonFiniteError
from p2o.algorithm.state import RunState
from p2o.callbacks.checkpoint import Checkpoint, CheckpointStore
from p2o.callbacks.failed_batch import failed_batch
from p2o.callbacks.growing_files import file_sizes
from p2o.callbacks.hooks import P2OCallback
from p2o.policy.sharding import optimizer_state, whole_state
from p2o.ranks import ALONE, PeerLostError, Ranks
from p2o.stop import Stop


class Checkpointing(P2OCallback):
    """``last.ckpt`` every ``every`` rounds, at each change of stage and when a stop is asked for; ``best.ckpt``.

    ``resume_from`` is what the run continues from, if it does. If the run is ended between two checkpoints, the
    rounds that no checkpoint has yet are written, unless it ends inside one's update.
    """

    def __init__(
        self,
        store: CheckpointStore,
        run_dir: Path,
        resume_from: Checkpoint | None,
        *,
        every: int,
        stop: Stop,
        ranks: Ranks = ALONE,
    ) -> None:
        self.store = store
        self.run_dir = run_dir
        self.resume_from = resume_from
        self.every = every
        self.stop = stop
        self.ranks = ranks
        self.saved_step: int | None = None
        """The step of the checkpoint on disk."""

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self.saved_step = module.state.step
        if self.resume_from is not None:
            module.policy.load_state_dict(self.resume_from.trainable)
            module.optimizer.load_state_dict(optimizer_state(self.resume_from.optimizer, module.optimizer))
            module.schedule.load_state_dict(self.resume_from.scheduler)
            self.resume_from = None
            self.ranks.from_first(lambda: self._mark_best(module))  # if it was killed between checkpoint and mark

    def on_position(self, trainer: Trainer, module: P2OModule, must_keep: bool) -> None:
        self._agree(module.state)
        asked = [by for by in self.ranks.gather(lambda: self.stop.by) if by is not None]
        if must_keep or asked or module.state.step % self.every == 0:
            self.save(trainer, module)
        if asked:  # on every rank, so that all end here
            self.stop.ask(asked[0])

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError) and self.ranks.is_first:
            path = self.run_dir / "failed_batch.jsonl"
            json_lines.rewrite(path, failed_batch(exception))
            exception.add_note(f"the last of their batches is in {path}")
        if module.resumable and self.saved_step not in (None, module.state.step):
            if not module.policy.sharded:
                self._write(trainer, module, self._checkpoint(module))
            elif not isinstance(exception, PeerLostError):  # every rank is here, and gathers the weights
                self.save(trainer, module)

    def save(self, trainer: Trainer, module: P2OModule) -> None:
        """Write ``last.ckpt``; if the newest validation is the best so far, keep it as ``best.ckpt`` too."""
        checkpoint = self._checkpoint(module)
        self.ranks.from_first(lambda: self._write(trainer, module, checkpoint))
        self.saved_step = module.state.step

    def _agree(self, state: RunState) -> None:
        """Every rank must stand where rank 0 does, which alone keeps what is for the run's files."""
        value = state.to_json()
        common = {name: value[name] for name in value.keys() - {"epochs", "files", "platform"}}
        self.ranks.agree(json.dumps(common, sort_keys=True), f"the state after round {state.step}")

    def _checkpoint(self, module: P2OModule) -> Checkpoint:
        """All ranks take part in it where they hold parts of the weights; it is that of rank 0."""
        return Checkpoint(
            trainable=whole_state(module.policy.state_dict(), keep=self.ranks.is_first),
            optimizer=whole_state(module.optimizer.state_dict(), keep=self.ranks.is_first),
            scheduler=module.schedule.state_dict(),
            state=module.state,
        )

    def _write(self, trainer: Trainer, module: P2OModule, checkpoint: Checkpoint) -> None:
        if not self.ranks.is_first:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        module.state.files = file_sizes(self.run_dir)
        self.store.save(checkpoint)
        self._mark_best(module)

    def _mark_best(self, module: P2OModule) -> None:
        best = module.state.validation.best
        if best is not None and best[0] == module.state.step:
            self.store.mark_best()
