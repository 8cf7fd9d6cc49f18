"""The parent's end of a grading process: start, send, receive within a time, kill."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

START_SECONDS = 120.0
"""Time that a process has to import what it needs."""


class WorkerProcess:
    """A running ``p2o.rewards.worker`` in a session of its own, so that Ctrl-C reaches the parent alone.

    Its string hashes are not randomised: SymPy orders by them, and a verdict must not depend on the process.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "p2o.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ)
        self._received = b""
        self._config = config

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Hand over the configuration.

        Raises:
            RuntimeError: with the worker's own words where it could not start.
            OSError, EOFError, TimeoutError: where it has none.
        """
        self.send(self._config)
        reply = self.receive(START_SECONDS)
        if "error" in reply:
            raise RuntimeError(reply["error"])

    def send(self, message: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Write one line. Raises OSError where the process is gone."""
        self._requests.write(json.dumps(message).encode() + b"\n")
        self._requests.flush()

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises TimeoutError where none comes in time, EOFError where the process is gone."""
        end = time.monotonic() + seconds
        while b"\n" not in self._received:
            # past the end it still looks once: the reply may be there and this thread have waited for its turn
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            chunk = os.read(self._replies.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """Send SIGKILL; from any thread, any number of times."""
        self._process.kill()

    def discard(self) -> None:
        """Kill, reap, and close the pipes; only from the thread that receives."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._replies.close()
        with suppress(OSError):  # bytes that nobody will read
            self._requests.close()
