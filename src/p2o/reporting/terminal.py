"""The terminal, as one object: bars, log lines and tables that share it do not overwrite each other."""

from __future__ import annotations

from rich.console import Console

TERMINAL = Console(stderr=True)
