"""Sweeps: processes of their own, own logs, on with the rest after a failure, on from where a kill struck."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from p2o.config import load_config
from p2o.reporting.results import read_status

ROOT = Path(__file__).parents[1]
CHOICES = sorted(path.stem for path in (ROOT / "conf" / "experiment" / "choice").glob("*.yaml"))
SWEEP = """\
defaults:
  - config
  - _self_
hydra:
  mode: MULTIRUN
  sweep:
    dir: runs
  job:
    config:
      override_dirname:
        exclude_keys: [experiment, seed, run_dir, scale, budget.tokens, data.train_size, data.val_size,
          model.params.steps, trainer.progress, reward.workers]
  launcher:
    jobs: 2
  sweeper:
    params:
      +experiment: grpo
      +scale: latent_skill
      model.params.steps: 2
      data.train_size: 8
      data.val_size: 4
      budget.tokens: 1000000
      policy.loss: grpo,nosuch.loss
      trainer.epochs: 1,10
"""


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 800
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def _writers(log: Path) -> list[str]:
    """Processes whose standard output is this file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if log.samefile(process / "fd" / "1"):
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="jobs end with their launcher by a call that Linux has")
def test_a_sweep_side_by_side_killed_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs share one model; a kill takes the one that still runs along; the same command continues.

    It takes longer than 30 s: the launcher's own processes import the libraries, which is what it is there for, and
    they do so twice.
    """
    monkeypatch.setenv("P2O_CACHE", str(tmp_path / "models"))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")  # what a checkout has
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "p2o.run", "-cd", ".", "-cn", "sweep"]

    def run_dir(loss: str, epochs: int) -> Path:
        return tmp_path / "runs" / "grpo" / f"policy.loss={loss},trainer.epochs={epochs}" / "seed-0"

    def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False
        )

    short, long = run_dir("grpo", 1), run_dir("grpo", 10)
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        try:
            _until(lambda: read_status(short) == "completed" or killed.poll() is not None)
            assert _writers(long / "launch.log"), "the longer job runs beside the shorter one"
        finally:
            killed.kill()
    _until(lambda: not _writers(long / "launch.log"))
    assert read_status(long) != "completed"
    logs = [(folder / "log.txt").read_text() for folder in (short, long)]
    assert sum(log.count("made the model") for log in logs) == 1
    assert len(list((tmp_path / "models" / "latent-skill").iterdir())) == 1
    done = (short / "summary.json").stat().st_mtime_ns

    again = sweep()
    assert again.returncode == 1, "a sweep with failed jobs says so"
    assert "Traceback" not in again.stderr
    assert (short / "summary.json").stat().st_mtime_ns == done, "what is complete is not run again"
    with (tmp_path / "runs" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed", "completed", "absent", "absent"]
    assert [row["seed"] for row in rows] == ["0", "0", "", ""]
    last = again.stdout.splitlines()[-5:]
    assert last[0].startswith("2 of 4 jobs complete")
    for number, line, reason, epochs in zip((2, 3), last[1::2], last[2::2], (1, 10), strict=True):
        assert line.startswith(f"failed: #{number} +experiment=grpo ")
        assert line.endswith(f" policy.loss=nosuch.loss trainer.epochs={epochs}")
        log = run_dir("nosuch.loss", epochs) / "launch.log"
        assert reason.strip() == f"exit code 2, see {log.relative_to(tmp_path)}"
    overrides = yaml.safe_load((long / "overrides.yaml").read_text())
    assert {"+experiment=grpo", "policy.loss=grpo", "trainer.epochs=10"} <= set(overrides)
    assert "nosuch" in (run_dir("nosuch.loss", 1) / "launch.log").read_text()
    assert "nosuch" not in (short / "launch.log").read_text()

    # The budget is no part of the folders' name, so a sweep with another one finds them.
    other = sweep("budget.tokens=2000000", "policy.loss=grpo", "trainer.epochs=0,1")
    assert other.returncode == 1
    assert "budget.tokens: 1000000 there, 2000000 asked for" in other.stdout
    assert "trainer.epochs=0 must be" in other.stdout, "a job that cannot be configured does not begin"
    assert not run_dir("grpo", 0).exists()
    with (tmp_path / "runs" / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["absent"], "its figures are not those asked for"


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_an_experiment_of_its_own(choice: str, compose_tree: Callable[..., DictConfig]) -> None:
    scale, base = "+scale=latent_skill", load_config(compose_tree("+scale=latent_skill", "+experiment=teacher_ref"))
    config = load_config(compose_tree(scale, f"+experiment=choice/{choice}"))
    assert config.name == choice
    assert config != base


@pytest.mark.parametrize("sweep", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_names_experiments_that_exist(sweep: Path) -> None:
    params = yaml.safe_load(sweep.read_text())["hydra"]["sweeper"]["params"]
    for experiment in params["+experiment"].split(","):
        assert (ROOT / "conf" / "experiment" / f"{experiment.strip()}.yaml").is_file()
