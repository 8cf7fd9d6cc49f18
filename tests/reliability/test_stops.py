"""SIGTERM and Ctrl-C end a run where it can be continued; other threads may take it up; two processes may not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lives import JOB, Driver, environment
from story import differing, story

from p2o.callbacks.checkpoint import read_checkpoint
from p2o.stop import Stop, Stopped

pytestmark = pytest.mark.timeout(600)


STOPS: list[tuple[dict[str, Any], int]] = [
    ({"strike": "a step of decoding", "step": 1, "stage": "policy", "call": 3}, 1),
    ({"strike": "a micro-batch", "step": 1}, 1),  # the round begins at the checkpoint: no need to end it
    ({"strike": "after the optimizer's step", "step": 1}, 2),  # it is as good as done: it is saved
    ({"strike": "templates evaluated, not journaled", "step": 3}, 3),
]
"""In the order in which a run passes them; and how many steps are saved then."""


def test_a_stopped_run_says_so_and_goes_on(driver: Driver, whole: Path, tmp_path: Path) -> None:
    """One process after another is stopped, and the next one continues."""
    run_dir = tmp_path / "run"
    for death, saved in STOPS:
        by = signal.SIGINT if saved == 2 else signal.SIGTERM
        life = driver.live(run_dir, signal=int(by), **death)
        assert life.code == 128 + by, death
        told = " ".join(life.said.split())
        assert f"Stopped by {by.name}. The same command continues from the last checkpoint." in told
        assert "Traceback" not in life.said
        assert read_checkpoint(run_dir / "checkpoints" / "last.ckpt").state.step == saved, death
    assert driver.live(run_dir).code == 0
    assert differing(story(whole), story(run_dir)) == []


DECODING = {"strike": "a step of decoding", "stage": "policy", "call": 3}


@pytest.mark.parametrize(
    ("how", "code", "ends"),
    [
        (
            {"signal": int(signal.SIGTERM)},
            143,
            [({"strike": "a micro-batch", "step": 1}, 2), ({**DECODING, "step": 4}, 4)],
        ),
        ({"engine_error": True}, 1, [({**DECODING, "step": 1}, 1), ({"strike": "the engine synced", "step": 2}, 2)]),
    ],
    ids=["a stop", "the engine"],
)
def test_rounds_without_a_checkpoint_are_saved_when_a_run_ends_early(
    how: dict[str, Any],
    code: int,
    ends: list[tuple[dict[str, Any], int]],
    driver: Driver,
    whole: Path,
    tmp_path: Path,
) -> None:
    """It is stopped, or its engine gives up, twice; a checkpoint is due after the third round and the sixth."""
    rare, run_dir = "trainer.checkpoint_every=3", tmp_path / "run"
    for death, saved in ends:
        life = driver.live(run_dir, rare, **how, **death)
        assert life.code == code, death
        assert ("its server is gone" in life.said) == ("engine_error" in how)
        assert "Traceback" not in life.said
        assert read_checkpoint(run_dir / "checkpoints" / "last.ckpt").state.step == saved, death
    assert driver.live(run_dir, rare).code == 0
    assert differing(story(whole), story(run_dir)) == []


def test_the_command_itself_ends_with_143_and_keeps_others_out(driver: Driver, tmp_path: Path) -> None:
    """A process of its own, from the command line; while it runs nobody else may use its folder.

    It may take longer than 30 s: this is the command as a user starts it, with all its imports.
    """
    run_dir = tmp_path / "run"
    job = (*JOB, f"seed={driver.seed}", "trainer.epochs=1000", f"run_dir={run_dir}")
    command = [sys.executable, "-m", "p2o.run", *job]
    process = subprocess.Popen(
        command, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    other = driver.live(run_dir, "trainer.epochs=1000")
    assert other.code == 2
    assert "is in use by another process: wait for it to end, or give another run_dir" in other.said
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Stopped by SIGTERM" in said
    assert read_checkpoint(checkpoint).state.step >= 0


def test_other_threads_may_go_on_and_the_run_says_what_that_means(driver: Driver, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert driver.live(run_dir, "trainer.threads=2", strike="a micro-batch", step=0).code == -9
    life = driver.live(run_dir)
    assert life.code == 0
    log = (run_dir / "log.txt").read_text()
    assert "the run continues on another platform (threads 2 → 1): its bits may differ" in log
    assert read_checkpoint(run_dir / "checkpoints" / "last.ckpt").state.platform["threads"] == "1"


def test_a_signal_waits_while_it_is_deferred() -> None:
    stop, done = Stop(), []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with stop.on_signals():
            stop.deferred = True
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("what is deferred for")
            stop.check()
            done.append("what follows")

    with pytest.raises(Stopped) as caught:
        work()
    assert (caught.value.exit_code, done) == (143, ["what is deferred for"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_wait() -> None:
    stop, done = Stop(), []

    def work() -> None:
        with stop.on_signals():
            stop.deferred = True
            os.kill(os.getpid(), signal.SIGINT)
            done.append("after the first")
            os.kill(os.getpid(), signal.SIGINT)
            done.append("after the second")

    with pytest.raises(Stopped) as caught:
        work()
    assert (caught.value.exit_code, done) == (130, ["after the first"])
