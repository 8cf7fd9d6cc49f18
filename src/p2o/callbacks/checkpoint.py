"""Checkpoints: one file each, whole or not there, free of pickled objects.

The file is torch's zip format holding tensors, plain containers and the RunState as a JSON string, so it loads with
``weights_only=True``; the zip's own CRC-32 of every record is the checksum.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from p2o.algorithm.state import RunState
from p2o.errors import InputError
from p2o.faults import fault_point
from p2o.files import draft_of, replacing, sync_folder

FORMAT = 2
log = logging.getLogger(__name__)


class CheckpointError(InputError):
    """No checkpoint of the folder can be used."""


@dataclass
class Checkpoint:
    """Everything that a resume needs. ``trainable`` holds the trained tensors by parameter name."""

    trainable: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    state: RunState


class CheckpointStore:
    """``last.ckpt``, the one before it, and ``best.ckpt`` of a run's folder.

    ``run`` is the digest of the run's configuration. It is written into each, so that another run's is not taken.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.run = run
        self.last = folder / "last.ckpt"
        self.previous = folder / "previous.ckpt"
        self.best = folder / "best.ckpt"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``last.ckpt``; the old one stays as ``previous.ckpt`` until, and after, the new one is whole."""
        content = {
            "format": FORMAT,
            "run": self.run,
            "trainable": {name: tensor.detach().cpu() for name, tensor in checkpoint.trainable.items()},
            "optimizer": checkpoint.optimizer,
            "scheduler": checkpoint.scheduler,
            "state": json.dumps(checkpoint.state.to_json()),
        }
        if self.last.exists():
            _link(self.last, self.previous)
        with replacing(self.last) as file:
            torch.save(content, file)

    def mark_best(self) -> None:
        """Keep the last checkpoint as the best."""
        fault_point("the best not yet marked")
        _link(self.last, self.best)
        fault_point("the best marked")

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, which is ``last.ckpt`` from now on; None if the run has none yet.

        One that is damaged, or another run's, is named in a warning and kept as ``last.ckpt.damaged``, out of the way
        of the next :meth:`save`. Raises :class:`CheckpointError` if there are checkpoints and all are damaged.
        """
        try:
            return read_checkpoint(self.last, self.run)
        except FileNotFoundError:
            if not self.previous.exists():
                return None
            log.warning("%s is missing: continuing from %s, the one before it", self.last, self.previous.name)
        except CheckpointError as error:
            log.warning("%s: continuing from %s, the one before it", error, self.previous.name)
        try:
            checkpoint = read_checkpoint(self.previous, self.run)
        except (CheckpointError, FileNotFoundError) as error:
            raise CheckpointError(
                f"no checkpoint in {self.last.parent} can be read ({error}): start anew with another run_dir"
            ) from error
        if self.last.exists():
            _link(self.last, self.last.with_name(self.last.name + ".damaged"))
        _link(self.previous, self.last)
        return checkpoint


def read_checkpoint(path: Path, run: str | None = None) -> Checkpoint:
    """Read one file.

    Raises :class:`CheckpointError` naming it if it is damaged, none of ours, or says that it is of another run than
    ``run``; ``FileNotFoundError`` if it is absent.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a p2o checkpoint of format {FORMAT}")
        if run is not None and content.get("run", run) != run:
            raise CheckpointError(f"{path} belongs to a run of another configuration")
        return Checkpoint(
            trainable=content["trainable"],
            optimizer=content["optimizer"],
            scheduler=content["scheduler"],
            state=RunState.from_json(json.loads(content["state"])),
        )
    except (CheckpointError, FileNotFoundError):
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{path} cannot be read: it holds more than tensors and plain values") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, atomically; a copy where the file system has no hard links."""
    draft = draft_of(target)
    draft.unlink(missing_ok=True)
    try:
        try:
            os.link(source, draft)
        except OSError:
            shutil.copyfile(source, draft)
        draft.replace(target)
        fault_point("a file linked", path=target)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(target.parent)
