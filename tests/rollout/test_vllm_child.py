"""The server of the run's own, with a real process at the other end of its socket that runs no vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from p2o.rollout import vllm_child
from p2o.rollout.engine import EngineError
from p2o.rollout.handover import Weights
from p2o.rollout.vllm_child import ChildServer
from p2o.rollout.vllm_client import ServerFailedError

Start = Callable[..., ChildServer]
WAIT_S = 60.0
"""For what comes true within a second or two on any machine that is not stuck."""


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "asked"


@pytest.fixture
def child(tmp_path: Path, note: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """``child(stalls="models", ...)``: a server with these options."""
    monkeypatch.setattr(vllm_child, "SERVE", "stub_serve")
    monkeypatch.setattr(vllm_child, "BEAT_S", 0.1)
    made: list[ChildServer] = []

    def build(device: str = "cpu", start_s: float = WAIT_S, stall_s: float = WAIT_S, **options: Any) -> ChildServer:
        options = {"tensor_parallel_size": 1, "model": "initial", "note": str(note), **options}
        made.append(ChildServer(lambda: (options, torch.device(device)), tmp_path / "log", start_s, stall_s))
        return made[-1]

    yield build
    for one in made:
        run(one.close)


def run(*steps: Callable[[], Awaitable[Any]]) -> None:
    async def all_of_them() -> None:
        for step in steps:
            await step()

    asyncio.run(all_of_them())


def asked(note: Path) -> list[str]:
    """Of the server, but whether it is there."""
    words = note.read_text().splitlines()
    return [word for word in words if not word.startswith(("models", "is_sleeping", "start", "pid"))]


def pids(note: Path) -> list[int]:
    return [int(line.split()[1]) for line in note.read_text().splitlines() if line.startswith("pid")]


def until_gone(pid: int) -> None:
    """A process that has ended and waits to be collected is gone as well."""
    end = time.monotonic() + WAIT_S
    while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.05)


def test_closing_leaves_neither_processes_nor_a_folder(child: Start, note: Path) -> None:
    one = child()
    run(one.start, lambda: one.complete({"max_tokens": 3}))
    pid, folder = one.pid, one._folder
    assert pid is not None
    assert folder.stat().st_mode & 0o077 == 0, "the socket is this user's alone"
    assert one.context == 64
    run(one.close)
    for each in (pid, *pids(note)):
        until_gone(each)
    assert not folder.exists()


def test_a_trainer_that_is_killed_takes_all_with_it(tmp_path: Path, note: Path) -> None:
    script = (
        "import asyncio, pathlib, time, torch\n"
        "from p2o.rollout import vllm_child\n"
        "vllm_child.SERVE = 'stub_serve'\n"
        f"options = {{'tensor_parallel_size': 1, 'model': 'initial', 'note': {str(note)!r}}}\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "one = vllm_child.ChildServer(lambda: (options, torch.device('cpu')), log, 60.0, 60.0)\n"
        "asyncio.run(one.start())\n"
        "print(one.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert trainer.stdout is not None
    server = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    for each in (server, *pids(note)):
        until_gone(each)


def test_a_first_start_that_fails_is_the_configurations_fault(child: Start) -> None:
    one = child(fails="max_model_len is too large")
    with pytest.raises(EngineError, match=r"with this configuration(.|\n)*status 1(.|\n)*max_model_len is too large"):
        run(one.start)
    assert one.pid is None


def test_a_later_start_that_fails_is_tried_again(child: Start) -> None:
    """By whoever asks for it: what has run once may run again."""
    one = child()
    run(one.start)
    one.drop()
    options, device = one._options()
    one._options = lambda: ({**options, "fails": "no memory"}, device)
    with pytest.raises(ServerFailedError, match="failed at its start"):
        run(one.start)
    one._options = lambda: (options, device)
    run(one.start)
    assert one.pid is not None


def test_a_start_that_takes_too_long_is_given_up(child: Start) -> None:
    with pytest.raises(EngineError, match=r"did not start within 1 s \(rollout\.start_s\)"):
        run(child(start_s=1.0, sleeps=600.0).start)


def test_a_start_that_is_interrupted_leaves_no_process(child: Start) -> None:
    one = child(stalls="models")
    pid: list[int | None] = []

    async def interrupted() -> None:
        start = asyncio.ensure_future(one.start())
        while one.pid is None:
            await asyncio.sleep(0.01)
        pid.append(one.pid)
        start.cancel()
        await asyncio.wait([start])

    run(interrupted)
    assert one.pid is None
    assert pid[0] is not None
    until_gone(pid[0])


def test_what_a_dead_server_said_last_is_told(child: Start) -> None:
    one = child(dies="generate")
    with pytest.raises(ServerFailedError, match="did not answer /v1/completions"):
        run(one.start, lambda: one.complete({"max_tokens": 3}))
    assert "exit status 3; its last words:\n  Traceback: out of memory" in one.drop()


def test_silence_is_noticed_while_it_generates(child: Start) -> None:
    one = child(stall_s=1.0)
    run(one.start)
    assert one.pid is not None
    os.kill(one.pid, signal.SIGSTOP)
    with pytest.raises(ServerFailedError, match="gave no sign of life for 1 s"):
        run(one.watch)


def test_a_sync_wakes_the_weights_and_a_request_the_cache(child: Start, note: Path) -> None:
    one = child("cuda")
    adapter = Weights("one", lambda: {"/v1/load_lora_adapter": {"lora_name": "one"}}, whole=False)
    run(one.start, one.sleep, one.sleep)
    run(one.start, lambda: one.load(adapter), one.wake_cache, one.start, one.wake_cache)
    assert asked(note) == ["sleep", "wake_up", "load_lora_adapter", "wake_up"]


def test_a_cpu_has_no_memory_to_hand_back(child: Start, note: Path) -> None:
    one = child()
    run(one.start, one.sleep, one.wake_cache)
    assert asked(note) == []


@pytest.mark.parametrize(("device", "repacks"), [("cpu", ["repack_head"]), ("cuda", [])])
def test_whole_weights_are_replaced_and_prefixes_forgotten(
    device: str, repacks: list[str], child: Start, note: Path
) -> None:
    one = child(device)
    weights = Weights("new", lambda: {"/collective_rpc": {"method": "reload_weights"}}, whole=True)
    run(one.start)
    assert one.held == {"initial"}
    run(lambda: one.load(weights), one.start)
    assert one.held == {"new"}
    assert asked(note) == ["reload_weights", *repacks, "reset_prefix_cache"]


def test_a_prefix_cache_that_stays_is_a_failure(child: Start) -> None:
    one = child(refuses="reset_prefix_cache")
    weights = Weights("new", lambda: {"/collective_rpc": {"method": "reload_weights"}}, whole=True)
    with pytest.raises(ServerFailedError, match="did not reset its prefix cache"):
        run(one.start, lambda: one.load(weights))
    run(one.start)
    assert "new" not in one.held


def test_the_line_that_names_the_error_is_found_above_the_last_ones(child: Start) -> None:
    """vLLM's engine fails in another process, which the server's own traceback follows."""
    cause = "(EngineCore pid=7) ERROR 11-28 12:58:03 [core.py:1] torch.OutOfMemoryError: CUDA out of memory"
    warning = "this can cause limits like `OSError: too many open files`"
    one = child(fails="\n".join([warning, cause, *(["  at a line of vLLM"] * 30)]))
    with pytest.raises(EngineError, match=r"last words:\n  \(EngineCore(.|\n)*CUDA out of memory\n  +at") as raised:
        run(one.start)
    assert "OSError" not in str(raised.value)
