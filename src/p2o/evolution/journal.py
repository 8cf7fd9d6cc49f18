"""What an evolution has already paid for, on disk: a killed run asks again and is answered from here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from p2o.errors import InputError
from p2o.faults import fault_point
from p2o.files import naming, sync_folder
from p2o.rollout.ledger import Ledger
from p2o.types import Phase


class JournalError(InputError):
    """The journal on disk belongs to another evolution, or is damaged. Names the file and the fix."""


class Journal:
    """Records every costly call of a deterministic loop, one JSON line each, synced before its result is used.

    A loop that is started again makes the same calls in the same order; those that the file holds are answered from
    it, and their cost is added to the ledger again. A line's ``key`` is a digest of the call's inputs, so no call gets
    another's answer; its ``check`` is a digest of its content. A last line that a kill cut short is dropped.
    """

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        self.replayed = 0
        """Calls answered from the file so far."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        sync_folder(path.parent)
        self._recorded = self._lines()

    def call(self, kind: str, inputs: Any, make: Callable[[], Any]) -> Any:
        """The result of ``make()`` as JSON gives it back; ``make`` is called only if the file does not hold it.

        ``inputs`` and the result must be JSON values. Raises :class:`JournalError` if the file's next call had
        another kind or other inputs.
        """
        key = _digest([kind, inputs])
        entry = next(self._recorded, None)
        if entry is not None:
            if entry["key"] != key:
                raise self._error(f"its call {self.replayed + 1} ({entry['kind']}) had other inputs than this {kind}")
            self.replayed += 1
            for phase, counts in entry["spent"].items():
                self.ledger.add(Phase(phase), **counts)
            return entry["result"]
        before = self.ledger.to_json()
        result = make()
        content = {"kind": kind, "key": key, "result": result, "spent": _spent(before, self.ledger.to_json())}
        line = json.dumps({"check": _digest(content), **content})
        with naming(self.path), self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fault_point("a call journaled", path=self.path)
        return json.loads(line)["result"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                entry = _decode(line)
                if entry is None:
                    raise self._error(f"line {number} is damaged")
                yield entry

    def _error(self, what: str) -> JournalError:
        return JournalError(
            f"{self.path}: {what}. It was written under another configuration, seed or policy, or is damaged: delete "
            f"the folder {self.path.parent} to evolve again"
        )


def _drop_torn_line(path: Path) -> None:
    with path.open("ab+") as file:
        file.seek(0)
        whole = 0
        last = b""
        for line in file:
            whole += len(last)
            last = line
        if _decode(last) is not None:
            whole += len(last)
        file.truncate(whole)
        file.flush()
        os.fsync(file.fileno())


def _decode(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
        check = content.pop("check")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return content if check == _digest(content) else None


def _spent(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What the ledger's counts grew by, zeros left out."""
    grown = {
        phase: {name: value - before[phase][name] for name, value in counts.items() if value != before[phase][name]}
        for phase, counts in after.items()
    }
    return {phase: counts for phase, counts in grown.items() if counts}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
