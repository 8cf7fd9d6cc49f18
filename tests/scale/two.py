"""Real processes that form a run's ranks, forked from one that has imported the libraries."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from p2o import faults
from p2o.rollout.engine import EngineError

HERE = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["p2o.launch", "scale_work"])


def environment(size: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(size)]


def together(function: Callable[..., Any], *arguments: Any, size: int = 2, timeout_s: float = 240) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``size`` processes; raises the traceback of one that fails."""
    processes, ends = [], []
    for variables in environment(size):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(variables, theirs, function, arguments))
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    deadline = time.monotonic() + timeout_s
    try:
        results = []
        for rank, end in enumerate(ends):
            assert end.poll(max(0.0, deadline - time.monotonic())), f"rank {rank} did not come to an end"
            try:
                good, value = end.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} ended without a word") from None
            assert good, value
            results.append(value)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def _work(variables: dict[str, str], end: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.update(variables)
    try:
        end.send((True, function(*arguments)))
    except BaseException:
        end.send((False, traceback.format_exc()))


@dataclass
class Job:
    """A run whose ranks are processes of the real command."""

    processes: list[BaseProcess]
    logs: list[Path]

    def wait(self, timeout_s: float = 240) -> list[int | None]:
        """Exit codes, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    @property
    def said(self) -> list[str]:
        """What each rank has printed."""
        return [log.read_text() for log in self.logs]


def start(folder: Path, *overrides: str, size: int = 2, fault: tuple[int, str] | None = None) -> Job:
    """``python -m p2o.run`` with these overrides on each rank, as torchrun starts it; by itself for ``size=1``.

    ``fault`` is the rank that fails, and the point of :mod:`p2o.faults` at which it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = Job([], [])
    for rank, variables in enumerate(environment(size) if size > 1 else [{"OMP_NUM_THREADS": "1"}]):
        log = folder / f"rank-{rank}.log"
        point = fault[1] if fault is not None and fault[0] == rank else None
        arguments = [f"trainer.devices={size}", *overrides]
        process = CONTEXT.Process(target=_command, args=(variables, log, arguments, point))
        process.start()
        job.processes.append(process)
        job.logs.append(log)
    return job


def _fail() -> None:
    raise EngineError("the engine of this rank is gone")


def _command(variables: dict[str, str], log: Path, arguments: list[str], point: str | None) -> None:
    os.environ.update(variables)
    with log.open("wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    faulthandler.dump_traceback_later(100)  # if it hangs, the test shows where
    if point is not None:
        faults.listen(lambda name, _: _fail() if name == point else None)
    sys.argv = ["p2o.run", *arguments]
    runpy.run_module("p2o.run", run_name="__main__", alter_sys=True)
