"""What a run pays its teacher, written to disk before the call: a kill forgets none."""

from __future__ import annotations

import json
from pathlib import Path

from p2o.files import write_json


class Spending:
    """Calls and tokens of all processes of a run, even if their work was lost and is not in the ledger."""

    def __init__(self, path: Path, *, calls: int, tokens: int) -> None:
        """``calls`` and ``tokens`` are what was spent if ``path`` does not say it yet."""
        self.path = path
        paid = json.loads(path.read_text()) if path.is_file() else {"calls": calls, "tokens": tokens}
        self.calls: int = paid["calls"]
        self.tokens: int = paid["tokens"]

    def add(self, calls: int, tokens: int) -> None:
        """Book the most that is about to be spent; negative tokens return what was booked and not used."""
        self.calls += calls
        self.tokens += tokens
        write_json(self.path, {"calls": self.calls, "tokens": self.tokens})
