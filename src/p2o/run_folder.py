"""A run's folder: opened for the first time, or found again by the same configuration; one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from p2o.config.evaluation import EvaluateConfig
from p2o.config.identity import differences
from p2o.config.load import to_plain
from p2o.config.schema import Config
from p2o.errors import InputError
from p2o.files import is_draft, remove_drafts, write_atomic

BEFORE_THE_RUN = frozenset({"launch.log"})
"""What a folder may hold before the run in it has begun: a sweep's record of the process."""
BEFORE_ANY_WORK = BEFORE_THE_RUN | {"config.yaml", "overrides.yaml", "environment.json", "log.txt"}
"""What a launch leaves that ended before it had done anything, at a missing model, say."""


class RunFolderError(InputError):
    """The run folder belongs to another run, or may not be continued."""


@contextmanager
def run_folder(config: Config | EvaluateConfig) -> Iterator[Path]:
    """The folder of the run as :func:`open_run_folder` finds it, for this process alone while the block runs, and clear
    of what a killed one left half written.
    """
    run_dir = Path(config.run_dir).expanduser()
    if run_dir.is_file():
        raise RunFolderError(f"run_dir={run_dir} is a file: give run_dir=<another folder>")
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole_user(run_dir):
        open_run_folder(config)
        remove_drafts(run_dir)
        yield run_dir


def open_run_folder(config: Config | EvaluateConfig) -> Path:
    """The folder of the run, with its ``config.yaml``.

    Raises :class:`RunFolderError` if it is not empty and ``resume=false``, or where it holds the run of another
    configuration; the message lists the keys that differ. One in which nothing was done yet may change its
    configuration: the fix of what kept it from starting.
    """
    run_dir = Path(config.run_dir).expanduser()
    plain = to_plain(config)
    path = run_dir / "config.yaml"
    content = {each.name for each in run_dir.iterdir() if not is_draft(each)} if run_dir.is_dir() else set()
    if content - BEFORE_THE_RUN:
        if not config.resume:
            raise RunFolderError(f"run_dir={run_dir} is not empty and resume=false: give run_dir=<another folder>")
        if not path.is_file():
            raise RunFolderError(
                f"run_dir={run_dir} is not a run's folder (no config.yaml): give run_dir=<another folder>"
            )
        before = read_configuration(path)
        if content - BEFORE_ANY_WORK or "run_dir" not in before:
            refuse_another_run(run_dir, before, plain)
    write_atomic(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return run_dir


@contextmanager
def sole_user(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of the folder while the block runs.

    Raises :class:`RunFolderError` if another process has it. The kernel opens the lock when its holder ends,
    however it ends. A file system without locks is used without.
    """
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunFolderError(
                    f"run_dir={run_dir} is in use by another process: wait for it to end, or give another run_dir"
                ) from error
        yield
    finally:
        os.close(folder)


def refuse_another_run(run_dir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise :class:`RunFolderError` with the keys that differ where ``there``, the configuration of the run in
    ``run_dir``, is not that of the run ``here``.
    """
    if differing := differences(there, here):
        lines = "\n".join(f"  {line}" for line in differing)
        raise RunFolderError(
            f"{run_dir} holds a run of another configuration:\n{lines}\nGive another run_dir, or the same values."
        )


def read_configuration(path: Path) -> Mapping[str, Any]:
    """A run's ``config.yaml``; raises :class:`RunFolderError` if it is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} cannot be read ({type(error).__name__}): give another run_dir") from error
    if not isinstance(value, Mapping):
        raise RunFolderError(f"{path} is not a configuration: give another run_dir")
    return value
