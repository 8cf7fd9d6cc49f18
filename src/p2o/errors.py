"""What the commands tell in one line instead of a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """The user must fix something; the message names the key or file and the fix. Exit code 2."""


class RunError(RuntimeError):
    """A fault ends the run; its last checkpoint stays, and the same command continues from there. Exit code 1."""
