"""What a run has paid its teacher, on disk before it is paid: a kill forgets no call."""

from __future__ import annotations

import json
from pathlib import Path

from p2o.files import write_json


class Spending:
    """Calls and tokens of all processes of a run, also of those whose work was lost and is not in the ledger."""

    def __init__(self, path: Path, *, calls: int, tokens: int) -> None:
        """``calls`` and ``tokens`` are what was spent if ``path`` does not say it yet."""
        self.path = path
        paid = json.loads(path.read_text()) if path.is_file() else {"calls": calls, "tokens": tokens}
        self.calls: int = paid["calls"]
        self.tokens: int = paid["tokens"]

    def add(self, calls: int, tokens: int) -> None:
        """Book what is about to be spent, at most; tokens are negative when less was taken than had been booked."""
        self.calls += calls
        self.tokens += tokens
        write_json(self.path, {"calls": self.calls, "tokens": self.tokens})
