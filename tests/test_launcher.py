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

ROOT = Path(__file__).parents[1]
CHOICES = sorted(path.stem for path in (ROOT / "conf" / "experiment" / "choice").glob("*.yaml"))
SWEEP = """\
defaults:
  - config
  - _self_
  - override debug: tiny
trainer:
  threads: 1
hydra:
  mode: MULTIRUN
  sweep:
    dir: runs
  launcher:
    jobs: 1
  sweeper:
    params:
      +experiment: grpo
      trainer.epochs: 1
      seed: 0,1
      model.architecture: llama,nonsense
"""


SIDE_BY_SIDE = """\
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
        exclude_keys: [experiment, seed, run_dir, scale, budget.tokens, data.train_size, data.val_size, trainer.epochs,
          model.params.steps, trainer.progress, reward.workers]
  launcher:
    jobs: 2
  sweeper:
    params:
      +experiment: grpo
      +scale: latent_skill
      model.params.steps: 20
      data.train_size: 8
      data.val_size: 4
      trainer.epochs: 1
      budget.tokens: 1000000
      seed: 0,1
"""


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 300
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


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="jobs end with their launcher by a call that Linux has")
def test_a_killed_sweep_takes_its_job_along_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2O_CACHE", str(tmp_path / "models"))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "p2o.run", "-cd", ".", "-cn", "sweep"]

    def run_dir(architecture: str, seed: int) -> Path:
        return tmp_path / "runs" / "grpo" / f"model.architecture={architecture},trainer.epochs=1" / f"seed-{seed}"

    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        try:
            _until(lambda: _writers(run_dir("llama", 1) / "launch.log"))
        finally:
            killed.kill()
    _until(lambda: not _writers(run_dir("llama", 1) / "launch.log"))
    done = (run_dir("llama", 0) / "summary.json").stat().st_mtime_ns

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 1, "a sweep with failed jobs says so"
    assert "Traceback" not in again.stderr
    assert (run_dir("llama", 0) / "summary.json").stat().st_mtime_ns == done, "what is complete is not run again"
    with (tmp_path / "runs" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed", "absent", "completed", "absent"]
    assert [row["seed"] for row in rows] == ["0", "", "1", ""]
    last = again.stdout.splitlines()[-5:]
    assert last[0].startswith("2 of 4 jobs complete")
    assert [line.split(" model")[0] for line in last[1::2]] == [
        f"failed: #{number} +experiment=grpo trainer.epochs=1 seed={seed}" for number, seed in ((1, 0), (3, 1))
    ]
    assert "model.architecture" in last[2]
    assert "nonsense" in last[2]
    assert not run_dir("nonsense", 0).exists()
    overrides = yaml.safe_load((run_dir("llama", 1) / "overrides.yaml").read_text())
    assert {"+experiment=grpo", "seed=1", "model.architecture=llama"} <= set(overrides)


@pytest.mark.timeout(900)
def test_jobs_side_by_side_make_their_model_once_and_are_not_taken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is no part of the folders' name, so a sweep with another one finds them."""
    monkeypatch.setenv("P2O_CACHE", str(tmp_path / "models"))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")  # what a checkout has
    (tmp_path / "sweep.yaml").write_text(SIDE_BY_SIDE)

    def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "p2o.run", "-cd", ".", "-cn", "sweep", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)

    first = sweep()
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.splitlines()[-1].startswith("2 of 2 jobs complete")
    logs = [path.read_text() for path in tmp_path.glob("runs/**/log.txt")]
    assert len(logs) == 2
    assert sum(log.count("made the model") for log in logs) == 1
    assert len(list((tmp_path / "models" / "latent-skill").iterdir())) == 1

    other = sweep("budget.tokens=2000000", "seed=0")
    assert other.returncode == 1
    assert "budget.tokens: 1000000 there, 2000000 asked for" in other.stdout
    assert (tmp_path / "runs" / "results.csv").read_text().count("\n") == 1, "its figures are not those asked for"

    failing = sweep("rollout.max_prompt_tokens=5", "seed=0")
    assert failing.returncode == 1
    (log,) = tmp_path.glob("runs/**/*max_prompt_tokens=5*/**/launch.log")
    assert f"exit code 2, see {log.relative_to(tmp_path)}" in failing.stdout
    assert "no training question fits" in log.read_text()


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
