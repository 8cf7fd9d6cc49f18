"""A run's folder: opened for the first time, or found again by the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from p2o.config.load import to_plain
from p2o.config.schema import Config
from p2o.files import write_atomic

NOT_OF_THE_RUN = frozenset(
    {"run_dir", "resume", "plan", "trainer.progress", "trainer.threads", "policy.max_skipped_steps"}
)
"""Keys that may differ between the launches of one run: they do not change what is computed."""


class RunFolderError(RuntimeError):
    """The run folder belongs to another run, or may not be continued."""


def open_run_folder(config: Config) -> Path:
    """The folder of the run, with its ``config.yaml``.

    Raises :class:`RunFolderError` where it is not empty and ``resume=false``, or where it holds the run of another
    configuration; the message lists the keys that differ.
    """
    run_dir = Path(config.run_dir).expanduser()
    plain = to_plain(config)
    path = run_dir / "config.yaml"
    if run_dir.is_file():
        raise RunFolderError(f"run_dir={run_dir} is a file: give run_dir=<another folder>")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        if not config.resume:
            raise RunFolderError(f"run_dir={run_dir} is not empty and resume=false: give run_dir=<another folder>")
        if not path.is_file():
            raise RunFolderError(
                f"run_dir={run_dir} is no run's folder (no config.yaml): give run_dir=<another folder>"
            )
        _refuse_other_configuration(path, plain)
    write_atomic(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return run_dir


def _refuse_other_configuration(path: Path, plain: Mapping[str, Any]) -> None:
    before, now = _flat(yaml.safe_load(path.read_text(encoding="utf-8"))), _flat(plain)
    differing = sorted(
        key for key in before.keys() | now.keys() if key not in NOT_OF_THE_RUN and before.get(key) != now.get(key)
    )
    if differing:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} asked for" for key in differing)
        raise RunFolderError(
            f"{path.parent} holds a run of another configuration:\n{lines}\nGive another run_dir, or the same values."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
