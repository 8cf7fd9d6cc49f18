"""A server of the run's own: :mod:`p2o.rollout.vllm_serve` as a child process, with the endpoints that only its owner
may use. It is started when it is needed, and started anew after it was dropped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import torch

from p2o.files import scratch_folder
from p2o.rollout.engine import EngineError
from p2o.rollout.handover import Weights
from p2o.rollout.vllm_client import Server, ServerFailedError

TORCHRUN = re.compile("RANK|LOCAL_RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(TORCHELASTIC|GROUP|ROLE|SLURM)_.*")
"""What torchrun and srun say to a trainer's rank would make vLLM look for the other ranks."""

SERVE = "p2o.rollout.vllm_serve"
POLL_S = 0.1
"""Seconds between two looks whether a server that starts is up."""
BEAT_S = 1.0
"""Seconds between two questions whether a server that generates is alive."""
END_S = 1.0
"""Seconds in which a server that has failed may end by itself, and so with a status that tells why."""
LAST_LINES = 15
ERRORS = 3
"""Lines of the log, of its end and of those that name an error, that a failure's message repeats."""
ERROR = re.compile(r"(?:^|[\])] )[\w.]*Error: ")


class ChildServer(Server):
    """A server in a session of its own, so that it is killed with all its children; ``log`` receives what it prints.

    ``options`` gives what :mod:`p2o.rollout.vllm_serve` is asked for and the policy's device; it is called at each
    start, since the policy moves to its device after everything is built. The server may take ``start_s`` to start or
    to load weights, and be silent for ``stall_s`` while it generates.
    """

    def __init__(
        self, options: Callable[[], tuple[Mapping[str, Any], torch.device]], log: Path, start_s: float, stall_s: float
    ) -> None:
        self._folder = scratch_folder(None, "vllm")  # a socket's path must be short, which the run's folder may not be
        self._socket = self._folder / "socket"
        http: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__]  # httpx2; before openai 3 httpx
        transport = http.AsyncHTTPTransport(uds=str(self._socket), limits=openai.DEFAULT_CONNECTION_LIMITS)
        super().__init__("http://vllm", "", start_s, openai.DefaultAsyncHttpxClient(transport=transport))
        self._complete_s = None  # a sign of life is what it is asked for meanwhile
        self.name = "the vLLM process"
        self.fix = "raise rollout.max_model_len"
        self._whole = ""
        """Name of the whole weights that it holds; empty while they are replaced."""
        self._options = options
        self._log = log
        self._stall_s = stall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False
        self._on_cpu = False
        self._asleep: set[str] = set()

    @property
    def pid(self) -> int | None:
        """None if no process runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it if none runs, and wake its weights.

        Raises :class:`~p2o.rollout.engine.EngineError` if it does not come up the first time.
        """
        if self._process is None:
            try:
                await self._start()
            except BaseException as error:
                end = self.drop()
                if self._has_run or not isinstance(error, ServerFailedError):
                    raise
                raise EngineError(f"vLLM does not start with this configuration: it {error}{end}") from None
            self._has_run = True
        await super().start()
        self.held.add(self._whole)
        await self._wake("weights")

    async def load(self, weights: Weights) -> None:
        """As any server an adapter; all weights are replaced in place."""
        if not weights.whole:
            return await super().load(weights)
        self._whole = ""
        await self._send(weights)
        if self._on_cpu:
            await self._call("POST", "/collective_rpc", {"method": "repack_head"})
        if not (await self._call("POST", "/reset_prefix_cache?reset_running_requests=true"))["success"]:
            raise ServerFailedError("did not reset its prefix cache: keys and values of older weights would be used")
        self._whole = weights.name

    async def wake_cache(self) -> None:
        await self._wake("kv_cache")

    async def watch(self) -> None:
        """The sign of life comes from the engine itself, between two of its steps."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._call("GET", "/is_sleeping")
            except TimeoutError:
                raise ServerFailedError(f"gave no sign of life for {self._stall_s:.0f} s") from None

    async def sleep(self) -> None:
        """Hand the accelerator's memory back; level 1 keeps the weights in host memory. A CPU has nothing to hand."""
        if self._process is not None and not self._on_cpu and not self._asleep:
            await self._call("POST", "/sleep?level=1")
            self._asleep = {"weights", "kv_cache"}

    async def _wake(self, part: str) -> None:
        """Weights first and the cache only before it is used, so that a sync has the cache's memory to itself."""
        if part in self._asleep:
            await self._call("POST", f"/wake_up?tags={part}")
            self._asleep.discard(part)

    def drop(self) -> str:
        """End the process and its children at once; how it ended by itself, and what it said last."""
        if self._process is None:
            return ""
        end = ""
        with suppress(subprocess.TimeoutExpired):
            end = f"; it ended with exit status {self._process.wait(END_S)}"
        self._kill()
        lines = self._log.read_text(errors="replace").splitlines()
        lines = [line for line in lines[:-LAST_LINES] if ERROR.search(line)][-ERRORS:] + lines[-LAST_LINES:]
        return end + ("\n  ".join(["; its last words:", *lines]) if lines else "")

    async def close(self) -> None:
        self._kill()
        await super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def _start(self) -> None:
        options, device = self._options()
        self._on_cpu, self._asleep, self._whole = device.type == "cpu", set(), options["model"]
        self._socket.unlink(missing_ok=True)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVE],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=_environment(device, spread=options["tensor_parallel_size"] > 1),
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps({**options, "uds": str(self._socket)}).encode())
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._process.poll() is None:
                    with suppress(ServerFailedError):
                        return await super().start()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ServerFailedError(f"did not start within {self._timeout_s:.0f} s (rollout.start_s)") from None
        raise ServerFailedError("failed at its start")


def _environment(device: torch.device, *, spread: bool) -> dict[str, str]:
    """The trainer's environment without its place among other ranks; unless ``spread``, with its policy's GPU alone."""
    env = {name: value for name, value in os.environ.items() if not TORCHRUN.fullmatch(name)}
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device.type == "cpu":
        env["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    elif device.index is not None and not spread:
        visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
        env["CUDA_VISIBLE_DEVICES"] = visible[device.index] if visible[0] else str(device.index)
    return env
