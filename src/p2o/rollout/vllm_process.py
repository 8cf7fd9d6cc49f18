"""The trainer's end of the process that runs vLLM: start, call, read within a time, kill."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

OnLine = Callable[[dict[str, Any]], None]

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
"""What torchrun says to a trainer's rank would make vLLM look for the other ranks."""

LOG_LINES = 15

WORKER = "p2o.rollout.vllm_worker"
EXIT_S = 10.0
"""Seconds that a process which has closed its end of the pipes may take to end."""


class EngineDiedError(Exception):
    """The process ended, fell silent, or failed in a call; a new one may do better."""


class VllmProcess:
    """A running :mod:`p2o.rollout.vllm_worker`, in a session of its own so that it is killed with all its children.

    ``log`` receives what vLLM prints. Raises :class:`EngineDiedError` if it does not come up within ``start_s``.
    """

    def __init__(self, options: Mapping[str, Any], device: torch.device, log: Path, start_s: float) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                start_new_session=True,
                env=_environment(device, spread=options["tensor_parallel_size"] > 1),
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        self._writable, self._readable = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._writable.register(self._requests, selectors.EVENT_WRITE)
        self._readable.register(self._replies, selectors.EVENT_READ)
        self._received = bytearray()
        self.running = True
        """False once it was killed, be it by a call that failed."""
        try:
            self._send(options, start_s)
            started = self._receive(start_s)
            if "error" in started:
                raise EngineDiedError(f"failed at its start: {started['error']}{self._tail()}")
        except BaseException:
            self.kill()
            raise
        self.context = int(started["ok"]["context"])
        """Tokens that a sequence may have, prompt included."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, seconds: float, on_line: OnLine | None = None, **arguments: Any) -> Any:
        """The reply to a call. ``seconds`` bounds every silence; ``on_line`` gets what comes before the reply.

        Raises :class:`EngineDiedError`. A call that ends by any exception, be it one of ``on_line``, ends the process:
        the next call would take the rest of its replies for its own.
        """
        try:
            return self._converse(method, seconds, on_line, arguments)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process and its children at once; any number of times."""
        if not self.running:
            return
        self.running = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for end in (self._writable, self._readable, self._requests, self._replies):
            end.close()

    def _converse(self, method: str, seconds: float, on_line: OnLine | None, arguments: Mapping[str, Any]) -> Any:
        self._send({"call": method, **arguments}, seconds)
        while True:
            message = self._receive(seconds)
            if "ok" in message:
                return message["ok"]
            if "error" in message:
                raise EngineDiedError(f"failed in {method}: {message['error']}{self._tail()}")
            if on_line is not None and "done" in message:
                on_line(message)

    def _send(self, message: Mapping[str, Any], seconds: float) -> None:
        """A call may be larger than the pipe, so that it is written as fast as the process reads."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while left:
                if not self._writable.select(seconds):
                    raise EngineDiedError(f"did not read a call for {seconds:.0f} s")
                left = left[os.write(self._requests.fileno(), left) :]
        except OSError:
            raise self._died() from None

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (newline := self._received.find(b"\n")) < 0:
            if not self._readable.select(max(0.0, end - time.monotonic())):
                raise EngineDiedError(f"gave no sign of life for {seconds:.0f} s")
            chunk = os.read(self._replies.fileno(), 1 << 20)
            if not chunk:
                raise self._died()
            self._received += chunk
        line = bytes(self._received[:newline])
        del self._received[: newline + 1]
        return json.loads(line)

    def _died(self) -> EngineDiedError:
        try:
            status = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return EngineDiedError(f"closed its pipes without ending{self._tail()}")
        return EngineDiedError(f"ended with exit status {status}{self._tail()}")

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n  ".join(["; its last words:", *lines]) if lines else ""


def _environment(device: torch.device, *, spread: bool) -> dict[str, str]:
    """The trainer's environment without its place among other ranks; unless ``spread``, with its policy's GPU alone."""
    env = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device.type == "cpu":
        env["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    elif device.index is not None and not spread:
        visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
        env["CUDA_VISIBLE_DEVICES"] = visible[device.index] if visible[0] else str(device.index)
    return env
