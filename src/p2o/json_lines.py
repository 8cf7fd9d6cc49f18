"""An append-only file of JSON objects, one a line, that a resumed run can wind back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from p2o.faults import fault_point
from p2o.files import naming, replacing

Row = dict[str, Any]


def encode(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add ``rows`` at the end and hand them to the operating system before returning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab") as file:
        before = file.tell()
        file.writelines(encode(row) for row in rows)
    fault_point("lines appended", path=path, before=before)


def read(path: Path) -> Iterator[Row]:
    """The rows of ``path`` (none if it is absent). A last line that a kill cut short is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` by ``rows`` in one step; ``rows`` may still be reading the old file."""
    with replacing(path) as file:
        file.writelines(encode(row) for row in rows)


def rewind(path: Path, keep: Callable[[Row], bool]) -> None:
    """Drop the rows that ``keep`` refuses, and a last line that was cut short."""
    if path.exists():
        rewrite(path, (row for row in read(path) if keep(row)))
