"""Files that are read again later: each appears whole, or the old one stays."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from p2o.faults import fault_point

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DRAFT = re.compile(r"\.(.+)\.[0-9]+\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` if the block succeeds; otherwise nothing changes.

    It is written beside ``path``, synced to the disk and renamed, so a reader, or a run that was killed at any
    moment, finds either the old content or the new. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with naming(path), draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fault_point("a draft written", path=path, draft=draft)
        draft.replace(path)
        fault_point("a draft renamed", path=path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make the error of a full disk name ``path``: a write does not know what it writes to."""
    try:
        yield
    except Exception as error:
        if (full := no_room(error)) is not None:
            full.filename = str(path)
        raise


def no_room(error: BaseException | None) -> OSError | None:
    """The full disk behind an error, which libraries wrap in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def draft_of(path: Path) -> Path:
    """Where this process writes the file or folder that will replace ``path``: beside it, under its own name."""
    machine = zlib.crc32(socket.gethostname().encode())  # ranks on several machines may have the same process id
    return path.with_name(f".{path.name}.{machine}{os.getpid():07d}.tmp")


def is_draft(path: Path) -> bool:
    """Whether ``path`` is named as :func:`draft_of` names files and folders."""
    return _DRAFT.fullmatch(path.name) is not None


def remove_drafts(folder: Path) -> None:
    """Delete what killed processes left half written anywhere below ``folder``; nobody else may be writing there."""
    for path in [path for path in folder.rglob(".*.tmp") if is_draft(path)]:
        _remove(path)


def remove_drafts_of(target: Path) -> None:
    """As :func:`remove_drafts`, for drafts of ``target`` alone."""
    for path in target.parent.glob(".*.tmp"):
        if (draft := _DRAFT.fullmatch(path.name)) is not None and draft[1] == target.name:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def scratch_folder(parent: Path | None, name: str) -> Path:
    """An empty folder for what this process hands to others. In ``parent`` it is a draft, which :func:`remove_drafts`
    finds after a kill; without one it is a temporary folder of the system."""
    if parent is None:
        return Path(tempfile.mkdtemp(prefix=f"p2o-{name}-"))
    folder = draft_of(parent.expanduser().resolve() / name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8) in one step."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON. NaN and infinities are not JSON: they raise ``ValueError``."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
