"""A sweep's plan: the paper's commands as a user gives them, and the table of what they take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from p2o.config import Config
from p2o.launch import plan_jobs
from p2o.planning import sizes
from p2o.planning.plan import make_plan
from p2o.planning.plan_text import render_sweep, variants
from p2o.types import Phase

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ["grpo", "grpo_n12", "teacher_ref", "self_ref", "no_distillation", "same_template", "tau_1", "tau_4"]
DATA = ["deepscaler_5k", "deepscaler_10k", "deepmath_5k", "deepmath_10k"]


def test_the_papers_main_table_is_planned_by_one_command_without_a_hub(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "p2o.run", "-cd", str(ROOT / "sweeps"), "-cn", "paper_table1", "debug=plan"]
    told = subprocess.run(
        [*command, "hydra.sweep.dir=runs"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [line.split() for line in told if line.lstrip()[:2].strip().isdigit()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 13)]
    assert rows[0][1:6] == ["data=deepscaler_5k", "+experiment=grpo", "1", "400", "307,500"]
    assert rows[11][1:6] == ["data=deepmath_10k", "+experiment=teacher_ref", "1", "790", "757,415"]
    total = next(line.split() for line in told if line.startswith("total"))
    assert total[1:3] == ["12", f"{sum(int(row[4].replace(',', '')) for row in rows):,}"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["multirun.yaml"], "no folder of a run"


@pytest.mark.parametrize("data", DATA)
def test_every_experiment_is_planned_at_the_papers_scale(data: str, configure: Callable[..., Config]) -> None:
    for experiment in EXPERIMENTS:
        plan = make_plan(configure(f"+experiment={experiment}", "+scale=paper", f"data={data}", "debug=plan"))
        assert plan.size is not None, "the paper's model is known without a hub"
        assert plan.size.parameters == 4_022_468_096
        assert plan.counts.work[Phase.POLICY].rollouts == 10 * plan.questions.train * plan.config.policy.rollouts
        assert {part.device for part in plan.parts} == {"cpu", "gpu", "disk"}


def test_a_model_is_measured_once_for_all_rows_of_a_sweep(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_known", {})
    measured: list[object] = []
    real = sizes._measure
    monkeypatch.setattr(sizes, "_measure", lambda *given: measured.append(given) or real(*given))
    for overrides in (("+experiment=grpo",), ("+experiment=teacher_ref",), ("+experiment=grpo", "tuning=full")):
        make_plan(configure(*overrides, "model=tiny", "debug=plan"))
    assert len(measured) == 2


def test_seeds_are_planned_once_and_what_concerns_some_rows_names_them(configure: Callable[..., Config]) -> None:
    commands = [
        (f"+experiment={experiment}", f"seed={seed}", "+scale=paper", "debug=plan")
        for experiment in ("grpo", "teacher_ref")
        for seed in (0, 1, 2)
    ]
    found = variants([(overrides, configure(*overrides)) for overrides in commands])
    assert {name: len(runs) for name, runs in found.items()} == {"+experiment=grpo": 3, "+experiment=teacher_ref": 3}
    plans = {name: (len(runs), make_plan(runs[0])) for name, runs in found.items()}
    runs, second = plans["+experiment=teacher_ref"]
    plans["+experiment=teacher_ref"] = runs, replace(second, notes=[*second.notes, "WARNING: only the second"])
    told = render_sweep(plans).splitlines()
    assert told[0].startswith("Plan of 6 runs.")
    assert next(line.split() for line in told if line.startswith("total"))[1:4] == ["6", "2,400", "2,275,245"]
    assert told[-1] == "(2) WARNING: only the second"
    assert sum("The time is not estimated" in line for line in told) == 1


def test_a_job_that_cannot_run_is_told_beside_the_plans_of_the_others(
    compose_tree: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (("+scale=paper", "debug=plan", f"policy.rollouts={count}") for count in (6, 1))
    with pytest.raises(SystemExit) as ended:
        plan_jobs([(overrides, compose_tree(*overrides)) for overrides in (good, bad)])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "Plan of 1 runs." in captured.out
    assert "policy.rollouts=1: the configuration cannot run" in captured.err
