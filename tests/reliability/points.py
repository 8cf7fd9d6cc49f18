"""The places of a run at which a life may end, and the record of the work that it began.

The code names its own places (:mod:`p2o.faults`); nothing is patched.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from p2o.algorithm.state import RunState
from p2o.rollout.engine import EngineError

Facts = dict[str, Any]


def _file(point: str, name: str) -> tuple[str, Callable[[Facts], bool], None]:
    return point, lambda facts: facts["path"].name == name, None


def _cut_draft(name: str, kept: float) -> tuple[str, Callable[[Facts], bool], Callable[[Facts], None]]:
    """The draft that will become the file ``name`` holds only the share ``kept`` of what was written to it."""

    def cut(facts: Facts) -> None:
        os.truncate(facts["draft"], int(facts["draft"].stat().st_size * kept))

    return "a draft written", lambda facts: facts["path"].name == name, cut


def _cut_append(prefix: str) -> tuple[str, Callable[[Facts], bool], Callable[[Facts], None]]:
    """Half of the lines of an append to a file whose name begins with ``prefix`` are there."""

    def cut(facts: Facts) -> None:
        os.truncate(facts["path"], (facts["before"] + facts["path"].stat().st_size) // 2)

    return "lines appended", lambda facts: facts["path"].name.startswith(prefix), cut


def _cut_journal(facts: Facts) -> None:
    path = facts["path"]
    os.truncate(path, int(path.stat().st_size * 0.99))


NAMED = (
    *("a step of decoding", "an answer handed to the grader", "an answer graded", "all answers there, none booked"),
    *("a micro-batch", "before the optimizer's step", "after the optimizer's step", "the update done"),
    *("the engine synced", "rollouts logged", "metrics logged", "the round reported", "the best not yet marked"),
    *("the best marked", "validated", "templates evaluated, not journaled", "a reflection asked for"),
    *("a reflection, not journaled", "a call journaled", "evolved", "pool and assignment", "assigned"),
    *("the epoch reported", "before the export", "half exported", "after the export", "the last summary"),
    *("the page written", "all told"),
)
POINTS: dict[str, tuple[str, Callable[[Facts], bool] | None, Callable[[Facts], None] | None]] = {
    **{name: (name, None, None) for name in NAMED},
    "rollouts half logged": _cut_append("epoch-"),
    "metrics half logged": _cut_append("metrics.jsonl"),
    "previous linked": _file("a file linked", "previous.ckpt"),
    "a checkpoint of no bytes": _cut_draft("last.ckpt", 0.0),
    "a checkpoint half written": _cut_draft("last.ckpt", 0.5),
    "a checkpoint not yet renamed": _file("a draft written", "last.ckpt"),
    "a checkpoint renamed": _file("a draft renamed", "last.ckpt"),
    "a journal line half written": ("a call journaled", None, _cut_journal),
    "the pool, not the assignment": _file("a draft renamed", "pool.json"),
    "an epoch's table not yet renamed": _file("a draft written", "epoch-000.parquet"),
    "an epoch's table and its lines": _file("a draft renamed", "epoch-000.parquet"),
    "the summary not yet renamed": _file("a draft written", "summary.json"),
}
"""Name → the fault point, which of its occurrences count, and what a kill there leaves torn."""


class Strike:
    """Counts the occurrences of a point in the right stage and step; at the right one the signal comes."""

    def __init__(self, command: Facts) -> None:
        self.point, self.counts, self.cut = POINTS[command["strike"]]
        self.calls = command.get("call", 1)
        self.step = command.get("step")
        self.stage = command.get("stage")
        self.signal = command.get("signal", signal.SIGKILL)
        self.error = EngineError("its server is gone") if command.get("engine_error") else None
        self.state: RunState | None = None

    def __call__(self, point: str, facts: Facts) -> None:
        if point == "the run begins":
            self.state = facts["state"]
        if self.state is None or point != self.point or (self.counts is not None and not self.counts(facts)):
            return
        if self.step not in (None, self.state.step) or self.stage not in (None, self.state.stage.value):
            return
        self.calls -= 1
        if self.calls == 0:
            if self.error is not None:
                raise self.error
            if self.cut is not None and self.signal == signal.SIGKILL:
                self.cut(facts)
            os.kill(os.getpid(), self.signal)


class Sizes:
    """Writes a line to ``path`` after each round: seconds so far, MiB in memory, and counts of open files, threads,
    children and tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()

    def __call__(self, point: str, facts: Facts) -> None:
        if point != "the engine synced":
            return
        status = Path("/proc/self/status").read_text()
        memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
        threads = int(status.partition("Threads:")[2].split()[0])
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        row = [time.monotonic() - self.began, memory, len(os.listdir("/proc/self/fd")), threads, len(children), tensors]
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Work:
    """Writes what is begun to ``path``, one line each: which kind, and a digest of which."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, point: str, facts: Facts) -> None:
        if point == "sample":
            asked = [
                [request.problem.id, request.index, request.seed, request.template] for request in facts["requests"]
            ]
            self._note(facts["phase"].value, [facts["version"], asked])
        elif point == "update":
            self._note("update", facts["step"])
        elif point == "a reflection asked for":
            self._note("reflection", facts["seeds"])

    def _note(self, kind: str, what: Any) -> None:
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        os.write(self.file, f"{kind} {digest}\n".encode())
