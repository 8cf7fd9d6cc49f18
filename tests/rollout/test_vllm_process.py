"""The trainer's end of the engine's process, with a real process at the other end that runs no vLLM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from p2o.rollout import vllm_process
from p2o.rollout.vllm_process import EngineDiedError, VllmProcess

Start = Callable[..., VllmProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``start(deaf=True, ...)``: a process with these options."""
    monkeypatch.setattr(vllm_process, "WORKER", "stub_worker")
    started: list[VllmProcess] = []

    def begin(**options: Any) -> VllmProcess:
        options = {"tensor_parallel_size": 1, **options}
        started.append(VllmProcess(options, torch.device("cpu"), tmp_path / "log", 60.0))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


def test_a_call_larger_than_the_pipe_arrives(start: Start) -> None:
    assert start().call("echo", 30.0, text="x" * 2**20) > 2**20


def test_a_process_that_does_not_read_is_given_up(start: Start) -> None:
    """The pipe holds 64 KiB, a call more. It would go on not reading for longer than this test may take."""
    deaf = start(deaf=True)
    with pytest.raises(EngineDiedError, match="did not read a call for 1 s"):
        deaf.call("generate", 1.0, text="x" * 2**20)
    assert not deaf.running


def test_an_exception_of_the_caller_ends_the_process(start: Start) -> None:
    """What it still had to say would be taken for the reply to the next call."""
    process = start()

    def refuse(_: dict[str, Any]) -> None:
        raise KeyError("grader")

    with pytest.raises(KeyError, match="grader"):
        process.call("generate", 30.0, refuse, count=3)
    assert not process.running
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    process.kill()  # once more does no harm


def test_a_start_that_is_interrupted_leaves_no_process(
    start: Start, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """While it waits for the process to say that it is up."""
    pids: list[int] = []
    receive = VllmProcess._receive

    def interrupted(process: VllmProcess, seconds: float) -> dict[str, Any]:
        pids.append(process.pid)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return receive(process, seconds)

    monkeypatch.setattr(VllmProcess, "_receive", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test process of xdist ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        start(start_s=600)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
