"""The trained policy as a folder that transformers and peft can load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer

from p2o.callbacks.checkpoint import CheckpointError, CheckpointStore, read_checkpoint
from p2o.callbacks.hooks import P2OCallback

log = logging.getLogger(__name__)


class Export(P2OCallback):
    """At the end of a run, writes the policy of the best validation (not the last) to ``model/``; on every rank."""

    def __init__(self, store: CheckpointStore, run_dir: Path) -> None:
        self.store = store
        self.run_dir = run_dir

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        try:
            best = read_checkpoint(self.store.best, self.store.run)
        except (CheckpointError, FileNotFoundError) as error:
            log.warning("%s: model/ is the last policy, not the best one", error)
            best = read_checkpoint(self.store.last)
        module.policy.load_state_dict(best.trainable)
        first = module.ranks.is_first
        module.ranks.together(lambda: module.policy.save(self.run_dir / "model", write=first))
        module.policy.load_state_dict(read_checkpoint(self.store.last).trainable)
