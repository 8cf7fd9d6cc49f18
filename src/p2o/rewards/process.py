"""The parent's end of a grading process: start, send, receive within a deadline, kill."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Pipe
from typing import Any

START_SECONDS = 120.0
"""Time that a process has to import what it needs."""


class WorkerProcess:
    """A running ``p2o.rewards.worker`` in a session of its own, so that Ctrl-C reaches the parent alone.

    Its string hashes are not randomised: SymPy orders by them, and a verdict must not depend on the process. Messages
    are JSON: a pickle from a process that reads hostile text could run anything here.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._connection, theirs = Pipe()
        self._replies = select.poll()
        self._replies.register(self._connection, select.POLLIN)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "p2o.rewards.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Hand over the settings.

        Raises:
            RuntimeError: with the worker's own words if it could not start.
            OSError, EOFError, TimeoutError: if it said nothing.
        """
        self.send(self._settings)
        reply = self.receive(START_SECONDS)
        if "error" in reply:
            raise RuntimeError(reply["error"])

    def send(self, message: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Raises OSError if the process is gone."""
        self._connection.send_bytes(json.dumps(message).encode())

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next reply. Raises TimeoutError if none comes in time, OSError or EOFError if the process is gone."""
        if not self._replies.poll(1000 * seconds):
            raise TimeoutError
        reply: dict[str, Any] = json.loads(self._connection.recv_bytes())
        return reply

    def kill(self) -> None:
        """Send SIGKILL; from any thread, any number of times."""
        self._process.kill()

    def discard(self) -> None:
        """Kill, reap, and close the connection; not while another thread receives."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
