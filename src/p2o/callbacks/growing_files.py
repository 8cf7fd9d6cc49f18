"""The files of a run that only grow, wound back to the bytes that a checkpoint knows of.

A step may be logged again after a kill, and some steps are logged more than once (a round, its validation, the
epoch's end), so a step's number does not tell what has to go. The length of the file does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)


def file_sizes(run_dir: Path) -> dict[str, int]:
    """Path below ``run_dir`` → bytes, of ``metrics.jsonl`` and TensorBoard's files; buffered bytes do not count."""
    return {str(path.relative_to(run_dir)): path.stat().st_size for path in _growing(run_dir)}


def rewind_files(run_dir: Path, known: Mapping[str, int]) -> None:
    """Cut the growing files to ``known``, and delete any others. Nothing may have them open."""
    for path in list(_growing(run_dir)):
        size = known.get(str(path.relative_to(run_dir)))
        if size is None:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    for name, size in known.items():
        path = run_dir / name
        if not path.exists() or path.stat().st_size < size:
            log.warning(
                "%s is shorter than the checkpoint says: the charts lose what is missing, the run loses nothing", path
            )


def _growing(run_dir: Path) -> Iterator[Path]:
    if (run_dir / "metrics.jsonl").exists():
        yield run_dir / "metrics.jsonl"
    yield from sorted((run_dir / "tensorboard").glob("**/events.out.tfevents.*"))
