"""Whole runs on two ranks: they end as one process does, and stop, fail and continue as one."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from teacher_server import Teacher
from two import Job, start

from p2o.rollout.engine import EngineError

JOB = (
    *("+experiment=teacher_ref", "debug=tiny", "reward=function", "reward.function=lucky.score"),
    *("reward.extract=[whole]", "reward.workers=1", "reward.deadline_s=60", "trainer.threads=1", "model.dtype=float32"),
    *("data.train_size=12", "hard_set.tau=4", "gepa.metric_calls=30", "gepa.temperature=1", "validation.temperature=1"),
)
"""Two epochs of three rounds and a prompt phase between them, on a random model; luck decides what is right."""


@pytest.fixture(autouse=True)
def _lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "end_to_end"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "end_to_end"))


def run(folder: Path, *overrides: str, size: int = 2, fault: tuple[int, str, Exception] | None = None) -> Job:
    return start(folder.parent, *JOB, *overrides, f"run_dir={folder}", size=size, fault=fault)


def finished(folder: Path, *overrides: str, size: int = 2) -> Path:
    job = run(folder, *overrides, size=size)
    assert job.wait() == [0] * size, "\n".join(job.said)
    return folder


def told(folder: Path) -> dict[str, Any]:
    """What a run found, without the seconds it took."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key != "seconds"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    evolution = {path.name: path.read_text() for path in sorted(folder.glob("evolution/*/*.json"))}
    return {"summary": timeless(json.loads((folder / "summary.json").read_text())), "evolution": evolution}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    trained: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["trainable"]
    return trained


def assert_same_run(one: Path, other: Path) -> None:
    assert told(one) == told(other)
    first, second = (pq.read_table(path / "rollouts" / "epoch-000.parquet").to_pylist() for path in (one, other))
    assert [row["tokens"] for row in first] == [row["tokens"] for row in second]
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=0, atol=1e-5, msg=name)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run of a seed in one process, made once."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = finished(tmp_path_factory.mktemp("alone") / "run", f"seed={seed}", size=1)
        return made[seed]

    return make


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_ranks_end_as_one_process_does(seed: int, tmp_path: Path, alone: Callable[[int], Path]) -> None:
    assert_same_run(alone(seed), finished(tmp_path / "run", f"seed={seed}"))


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)], ids=["one then two", "two then one"])
def test_a_run_continues_on_another_number_of_ranks(
    sizes: tuple[int, int], tmp_path: Path, alone: Callable[[int], Path]
) -> None:
    run_dir = tmp_path / "run"
    first = run(run_dir, "seed=1", size=sizes[0])
    until(lambda: (run_dir / "checkpoints" / "previous.ckpt").exists())
    os.kill(first.processes[0].pid or 0, signal.SIGTERM)
    assert first.wait() == [128 + signal.SIGTERM] * sizes[0], "\n".join(first.said)
    assert_same_run(alone(1), finished(run_dir, "seed=1", size=sizes[1]))


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_rank_stops_all(rank: int, number: signal.Signals, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = run(run_dir, "trainer.epochs=50")
    until(lambda: (run_dir / "checkpoints" / "last.ckpt").exists())
    os.kill(job.processes[rank].pid or 0, number)
    assert job.wait() == [128 + number] * 2, "\n".join(job.said)
    assert job.said[0].count(f"Stopped by {number.name}") == 1
    assert "Stopped" not in job.said[1]
    assert (run_dir / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_other(rank: int, tmp_path: Path, alone: Callable[[int], Path]) -> None:
    run_dir = tmp_path / "run"
    job = run(run_dir, "seed=1")
    until(lambda: (run_dir / "checkpoints" / "previous.ckpt").exists())
    job.processes[rank].kill()
    codes = job.wait()
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1), "\n".join(job.said)
    if rank:
        assert "another process of the run is gone" in job.said[0]
        assert "Traceback" not in job.said[0]
    assert_same_run(alone(1), finished(run_dir, "seed=1"))


def test_a_number_of_processes_that_is_not_the_configurations_is_refused(tmp_path: Path) -> None:
    job = run(tmp_path / "run", "trainer.nodes=2")
    assert job.wait() == [2, 2]
    assert "give trainer.devices=2 trainer.nodes=1" in job.said[0]
    assert job.said[1] == ""


@pytest.mark.parametrize(("tuning", "size"), [("lora", 2), ("full", 2), ("lora", 1)])
def test_weights_that_are_split_over_the_ranks_change_nothing(tuning: str, size: int, tmp_path: Path) -> None:
    both = f"tuning={tuning}", "seed=1", "policy.updates_per_round=2"
    assert_same_run(
        finished(tmp_path / "one" / "run", *both, size=1),
        finished(tmp_path / "split" / "run", *both, "trainer.strategy=fsdp2", size=size),
    )


@pytest.mark.parametrize("point", ["a micro-batch", "update"])
def test_an_error_on_one_rank_is_one_message_of_rank_0(point: str, tmp_path: Path) -> None:
    """While others wait for it or compute, and between what they agree on."""
    job = run(tmp_path / "run", fault=(1, point, EngineError("the engine of this rank is gone")))
    assert job.wait() == [1, 1], "\n".join(job.said)
    assert job.said[0].count("the engine of this rank is gone") == 1
    assert "Traceback" not in job.said[0]
    assert job.said[1] == ""


def test_a_full_disk_on_rank_0_ends_all_with_one_message(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    job = run(tmp_path / "run", fault=(0, "rollouts logged", full))
    assert job.wait() == [1, 1], "\n".join(job.said)
    assert job.said[0].count("No room to write") == 1
    assert "Traceback" not in job.said[0]
    assert job.said[1] == ""


def test_a_stop_while_the_teacher_hangs_reaches_the_rank_that_waits_for_it(tmp_path: Path, teacher: Teacher) -> None:
    """Rank 0 asks the teacher, which would answer in ten minutes; rank 1 is asked to stop."""
    teacher.script = [lambda call: call.server.over.wait(600)]
    endpoint = f"reflector.base_url={teacher.url}", "reflector.api_key_env=NO_PROXY", "reflector.model=kimi"
    job = run(tmp_path / "run", "reflector=openai", *endpoint, "reflector.timeout_s=3600")
    until(lambda: teacher.calls)
    os.kill(job.processes[1].pid or 0, signal.SIGTERM)
    assert job.wait() == [143, 143], "\n".join(job.said)
    assert job.said[0].count("Stopped by SIGTERM") == 1


def writers(log: Path) -> list[str]:
    """Processes whose standard output is this file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if log.samefile(process / "fd" / "1"):
                found.append(process.name)
    return found


def test_the_command_starts_its_own_processes(tmp_path: Path, alone: Callable[[int], Path]) -> None:
    assert_same_run(alone(1), finished(tmp_path / "run", "seed=1", "trainer.devices=2", size=1))


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with the one that started them by a call of Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_command_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = run(run_dir, "trainer.epochs=50", "trainer.devices=2", size=1)
    until(lambda: (run_dir / "checkpoints" / "last.ckpt").exists())
    assert len(writers(job.logs[0])) >= 3
    os.kill(job.processes[0].pid or 0, number)
    assert job.wait() == [143 if number == signal.SIGTERM else -signal.SIGKILL], job.said[0]
    until(lambda: not writers(job.logs[0]))
    assert job.said[0].count("Stopped by SIGTERM") == 1
