"""A checkpoint damaged while the run is down costs the work since the one before it, and no bit of the result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lives import Driver
from story import differing, story

pytestmark = pytest.mark.timeout(600)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    where = content.index(b"policy_version") + 2
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


@pytest.mark.parametrize(
    ("damage", "death"),
    [
        (truncated, {"strike": "a micro-batch", "step": 2}),
        (flipped, {"strike": "a step of decoding", "step": 3, "stage": "policy", "call": 3}),  # evolves once more
    ],
    ids=["truncated", "flipped"],
)
def test_a_damaged_checkpoint_costs_no_bit_of_the_result(
    damage: Callable[[bytes], bytes], death: dict[str, Any], driver: Driver, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert driver.live(run_dir, **death).code == -9
    last = run_dir / "checkpoints" / "last.ckpt"
    content = damage(last.read_bytes())
    last.unlink()
    last.write_bytes(content)
    life = driver.live(run_dir)
    assert life.code == 0, life.said
    said = " ".join(life.said.split())
    assert "last.ckpt" in said
    assert "continuing from previous.ckpt, the one before it" in said
    kept = last.with_name("last.ckpt.damaged")
    assert kept.read_bytes() == content
    kept.unlink()
    assert differing(story(whole), story(run_dir)) == []


def test_another_run_s_checkpoint_is_not_trained_on(driver: Driver, whole: Path, tmp_path: Path) -> None:
    other, run_dir = tmp_path / "other", tmp_path / "run"
    assert driver.live(other, "seed=99", strike="a micro-batch", step=2).code == -9
    assert driver.live(run_dir, strike="a micro-batch", step=2).code == -9
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    shutil.copyfile(other / "checkpoints" / "last.ckpt", run_dir / "checkpoints" / "last.ckpt")
    life = driver.live(run_dir)
    assert life.code == 0, life.said
    assert "last.ckpt belongs to a run of another configuration: continuing from previous.ckpt" in " ".join(
        life.said.split()
    )
    (run_dir / "checkpoints" / "last.ckpt.damaged").unlink()
    assert differing(story(whole), story(run_dir)) == []
