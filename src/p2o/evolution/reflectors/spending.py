"""What a run has paid its teacher, on disk before it is paid: a kill forgets no call."""

from __future__ import annotations

import json
from pathlib import Path

from p2o.files import write_json


class Spending:
    """Calls and tokens of all processes of a run, of those too whose work was lost and is not in the ledger.

    A call is booked with the most that it may cost, and settled when that is known. One that a kill cut short stays
    booked.
    """

    def __init__(self, path: Path, *, calls: int, tokens: int) -> None:
        """``calls`` and ``tokens`` are what was spent where ``path`` does not say it yet."""
        self.path = path
        paid = json.loads(path.read_text()) if path.is_file() else {"calls": calls, "tokens": tokens}
        self.calls: int = paid["calls"]
        self.tokens: int = paid["tokens"]

    def book(self, tokens: int) -> None:
        """A call is about to be made that may take so many tokens."""
        self._add(1, tokens)

    def settle(self, booked: int, tokens: int) -> None:
        """A call that was booked with ``booked`` tokens took ``tokens``."""
        self._add(0, tokens - booked)

    def _add(self, calls: int, tokens: int) -> None:
        self.calls += calls
        self.tokens += tokens
        write_json(self.path, {"calls": self.calls, "tokens": self.tokens})
