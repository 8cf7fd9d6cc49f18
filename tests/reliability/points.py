"""The places of a run at which a life may end, and the record of the work that it began."""

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
from peft import PeftModel

from p2o.evolution.adapter import TemplateAdapter
from p2o.evolution.journal import Journal
from p2o.evolution.proposals import TemplateReflection
from p2o.evolution.reflectors.strategies import StrategiesReflector
from p2o.policy.model import Policy
from p2o.reporting import json_lines, reporter
from p2o.reporting.reporter import Reporter
from p2o.reporting.rollout_log import RolloutLog
from p2o.rewards.pool import GraderPool
from p2o.rollout.engine import EngineError
from p2o.rollout.hf import HfEngine, _Decode
from p2o.rollout.sampler import Sampler
from p2o.training import checkpoint, module
from p2o.training.checkpoint import CheckpointStore
from p2o.training.module import P2OModule

Strike = Callable[[], None]


def before(owner: Any, name: str) -> Callable[[Strike], None]:
    def install(strike: Strike) -> None:
        original = getattr(owner, name)

        def struck(*args: Any, **kwargs: Any) -> Any:
            strike()
            return original(*args, **kwargs)

        setattr(owner, name, struck)

    return install


def after(owner: Any, name: str) -> Callable[[Strike], None]:
    def install(strike: Strike) -> None:
        original = getattr(owner, name)

        def struck(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            strike()
            return result

        setattr(owner, name, struck)

    return install


def written(file: str, kept: float) -> Callable[[Strike], None]:
    """``file`` (or the draft that will become it) holds only the share ``kept`` of what was written to it."""

    def install(strike: Strike) -> None:
        original = os.fsync

        def struck(descriptor: int) -> None:
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            if name == file or name.startswith(f".{file}."):
                size = os.fstat(descriptor).st_size
                strike_if_due = strike
                strike_if_due.cut = lambda: os.ftruncate(descriptor, int(size * kept))  # type: ignore[attr-defined]
                strike_if_due()
            original(descriptor)

        os.fsync = struck  # type: ignore[assignment]

    return install


def renamed(file: str, *, done: bool) -> Callable[[Strike], None]:
    """Just before, or just after, a draft takes the name ``file``."""

    def install(strike: Strike) -> None:
        original = Path.replace

        def struck(self: Path, target: Any) -> Path:
            mine = Path(target).name == file
            if mine and not done:
                strike()
            result = original(self, target)
            if mine and done:
                strike()
            return result

        Path.replace = struck  # type: ignore[assignment,method-assign]

    return install


def torn_append(file: str) -> Callable[[Strike], None]:
    """Half of the lines of an append to ``file`` are there."""

    def install(strike: Strike) -> None:
        original = json_lines.append

        def struck(path: Path, rows: Any) -> None:
            size = path.stat().st_size if path.exists() else 0
            original(path, rows)
            if path.name.startswith(file):
                strike.cut = lambda: os.truncate(path, (size + path.stat().st_size) // 2)  # type: ignore[attr-defined]
                strike()

        json_lines.append = struck

    return install


POINTS: dict[str, Callable[[Strike], None]] = {
    "a step of decoding": before(_Decode, "_step"),
    "an answer handed to the grader": after(GraderPool, "submit"),
    "an answer graded": before(GraderPool, "finish"),
    "all answers there, none booked": before(Sampler, "_book"),
    "a micro-batch": after(P2OModule, "manual_backward"),
    "before the optimizer's step": before(torch.optim.AdamW, "step"),
    "after the optimizer's step": after(torch.optim.AdamW, "step"),
    "the update done": after(P2OModule, "_update"),
    "the engine synced": after(HfEngine, "sync"),
    "rollouts half logged": torn_append("epoch-"),
    "rollouts logged": after(RolloutLog, "append"),
    "metrics half logged": torn_append("metrics.jsonl"),
    "metrics logged": after(Reporter, "_log"),
    "the round reported": after(Reporter, "round"),
    "previous linked": after(checkpoint, "_link"),
    "a checkpoint of no bytes": written("last.ckpt", 0.0),
    "a checkpoint half written": written("last.ckpt", 0.5),
    "a checkpoint not yet renamed": renamed("last.ckpt", done=False),
    "a checkpoint renamed": renamed("last.ckpt", done=True),
    "the best not yet marked": before(CheckpointStore, "mark_best"),
    "the best marked": after(CheckpointStore, "mark_best"),
    "validated": after(P2OModule, "validate_plain"),
    "templates evaluated, not journaled": after(TemplateAdapter, "_run"),
    "a reflection asked for": before(StrategiesReflector, "reflect"),
    "a reflection, not journaled": after(TemplateReflection, "_ask"),
    "a journal line half written": written("journal.jsonl", 0.99),
    "a call journaled": after(Journal, "call"),
    "evolved": after(module, "evolve"),
    "the pool, not the assignment": renamed("pool.json", done=True),
    "pool and assignment": after(reporter, "write_pool"),
    "assigned": after(P2OModule, "assign_templates"),
    "an epoch's table not yet renamed": renamed("epoch-000.parquet", done=False),
    "an epoch's table and its lines": renamed("epoch-000.parquet", done=True),
    "the summary not yet renamed": renamed("summary.json", done=False),
    "the epoch reported": after(Reporter, "epoch"),
    "before the export": before(Policy, "save"),
    "half exported": after(PeftModel, "save_pretrained"),
    "after the export": after(Policy, "save"),
    "the last summary": after(Reporter, "_write_summary"),
    "the page written": after(reporter, "write_report"),
    "all told": after(Reporter, "finish"),
}
"""Name → what makes a life end there."""


class Striker:
    """Counts the calls of a point in the right stage and step; at the right one the signal comes."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.calls = command.get("call", 1)
        self.step = command.get("step")
        self.stage = command.get("stage")
        self.signal = command.get("signal", signal.SIGKILL)
        self.error = EngineError("its server is gone") if command.get("engine_error") else None
        self.cut: Callable[[], None] | None = None
        self.module: P2OModule | None = None

    def __call__(self) -> None:
        if self.module is None or self.step not in (None, self.module.state.step):
            return
        if self.stage not in (None, self.module.state.stage.value):
            return
        self.calls -= 1
        if self.calls == 0:
            if self.error is not None:
                raise self.error
            if self.cut is not None and self.signal == signal.SIGKILL:
                self.cut()
            os.kill(os.getpid(), self.signal)


def arm(command: dict[str, Any]) -> None:
    """Make this process die where ``command`` says."""
    strike = Striker(command)
    POINTS[command["strike"]](strike)
    original = P2OModule.on_fit_start

    def on_fit_start(self: P2OModule) -> None:
        strike.module = self
        original(self)

    P2OModule.on_fit_start = on_fit_start  # type: ignore[method-assign]


def record_sizes(path: Path) -> None:
    """Write a line to ``path`` after each round: seconds so far, MiB in memory, and counts of open files,
    threads, children and tensors."""
    learn, began = P2OModule._learn, time.monotonic()

    def measured(self: P2OModule, *args: Any) -> None:
        learn(self, *args)
        status = Path("/proc/self/status").read_text()
        memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
        threads = int(status.partition("Threads:")[2].split()[0])
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        row = [time.monotonic() - began, memory, len(os.listdir("/proc/self/fd")), threads, len(children), tensors]
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    P2OModule._learn = measured  # type: ignore[method-assign]


def record_work(path: Path) -> None:
    """Write what is begun to ``path``, a line each: which kind, and a digest of which."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sample, update, reflect = Sampler.sample, P2OModule._update, StrategiesReflector.reflect

    def note(kind: str, what: Any) -> None:
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        os.write(file, f"{kind} {digest}\n".encode())

    def noted_sample(self: Sampler, requests: Any, *args: Any, **kwargs: Any) -> Any:
        asked = [[request.problem.id, request.index, request.seed, request.template] for request in requests]
        note(kwargs["phase"].value, [kwargs["version"], asked])
        return sample(self, requests, *args, **kwargs)

    def noted_update(self: P2OModule, *args: Any) -> Any:
        note("update", self.state.step)
        return update(self, *args)

    def noted_reflect(self: StrategiesReflector, jobs: Any) -> Any:
        note("reflection", [job.seed for job in jobs])
        return reflect(self, jobs)

    Sampler.sample = noted_sample  # type: ignore[method-assign]
    P2OModule._update = noted_update  # type: ignore[method-assign]
    StrategiesReflector.reflect = noted_reflect  # type: ignore[method-assign]
