"""A full disk ends a run with a clear message; what was whole before is whole after, and the run continues from it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import Driver
from story import differing, story

from p2o.callbacks.checkpoint import read_checkpoint

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Take all room but ``left`` bytes."""
    stuff = folder / "stuff"
    free = os.statvfs(folder)
    stuff.write_bytes(b"\0" * max(0, free.f_bavail * free.f_bsize - left))
    return stuff


@pytest.mark.parametrize(
    ("left", "file"), [(0, "config.yaml"), (65536, "checkpoints/last.ckpt")], ids=["configuration", "checkpoint"]
)
def test_a_full_disk_costs_nothing_but_time(
    left: int, file: str, small_disk: Path, driver: Driver, whole: Path
) -> None:
    run_dir = small_disk / "run"
    assert driver.live(run_dir, strike="a step of decoding", step=1, stage="policy").code == -9
    last = run_dir / "checkpoints" / "last.ckpt"
    stuff = fill(small_disk, left)
    life = driver.live(run_dir)
    assert life.code == 1
    said = " ".join(life.said.split())
    assert f"No room to write {run_dir / file} (" in said
    assert "make room and give the same command, and the run continues from there" in said
    assert "Traceback" not in said, life.said
    assert read_checkpoint(last).state.step >= 1
    assert not list(run_dir.rglob("*.tmp"))
    stuff.unlink()
    life = driver.live(run_dir)
    assert life.code == 0, life.said
    assert differing(story(whole), story(run_dir)) == []
