"""The paper's commands: every job of every paper sweep is valid, and every experiment runs at the paper's scale.

The runs keep all of ``+scale=paper`` but the sizes: the same architecture (Qwen3) with random weights, the published
preparation of questions (real ones where they are there), two updates a round, warm-up, a validation between the
epochs' ends.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from chance import can_be_solved
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from p2o.algorithm.hard_set import HardSet
from p2o.algorithm.module import P2OModule
from p2o.callbacks.checkpoint import read_checkpoint
from p2o.config import Config, load_config
from p2o.evolution.gepa_phase import Evolution
from p2o.job import RunResult, train
from p2o.types import Template

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ["grpo", "grpo_n12", "teacher_ref", "self_ref", "no_distillation", "same_template", "tau_1", "tau_4"]
QUESTIONS = ROOT.parent / "shared" / "data" / "deepscaler_train_part.jsonl"
DATA = ["deepscaler_5k", "deepscaler_10k", "deepmath_5k", "deepmath_10k"]
REFLECTOR = {"self_ref": "openai"}
"""Self-Ref takes its limits from the paper's reflector and asks nobody; the others get the built-in teacher."""

TINY = (
    "+scale=paper",
    "model=tiny_qwen3",
    "rollout=hf",
    "data.train_size=24",
    "data.val_size=16",
    "reward=function",
    "reward.function=chance.score",
    "reward.extract=[whole]",
    "reward.workers=1",
    "rollout.max_prompt_tokens=480",  # of bytes: the short questions only
    "rollout.max_new_tokens=8",
    "policy.questions_per_round=6",
    "hard_set.min_size=2",
    "gepa.dev_size=4",
    "gepa.parents=2",
    "gepa.metric_calls=40",
    "gepa.max_iterations=4",
    "gepa.max_template_tokens=256",
    "reflector.max_new_tokens=16",
    "reflector.max_prompt_tokens=2048",
    "trainer=cpu",
    "trainer.epochs=2",
    "trainer.rounds_per_epoch=1",
    "trainer.threads=1",
    "trainer.progress=false",
    "logger=off",
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in the columns of DeepScaleR, with answers as formulas."""
    path = tmp_path_factory.mktemp("questions") / "fractions.jsonl"
    rows = [
        {"problem": f"Simplify $\\frac{{{a}}}{{{b}}} + {a}$.", "answer": f"\\frac{{{a + a * b}}}{{{b}}}"}
        for a in range(2, 10)
        for b in range(11, 18)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def questions(generated: Path) -> Path:
    """Real questions of DeepScaleR where they are there."""
    return QUESTIONS if QUESTIONS.is_file() else generated


@pytest.fixture(autouse=True)
def _teacher_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")


def jobs_of(sweep: str) -> list[tuple[str, ...]]:
    """The overrides of each job of a sweep, the product of its parameters."""
    params = yaml.safe_load((ROOT / "sweeps" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    parser = OverridesParser.create()
    axes = []
    for key, values in params.items():
        override = parser.parse_override(f"{key}={values}")
        choices = list(override.sweep_string_iterator()) if override.is_sweep_override() else [values]
        axes.append([f"{key}={choice}" for choice in choices])
    return list(itertools.product(*axes))


@pytest.fixture(scope="module")
def sweeps() -> dict[str, list[Config]]:
    """The checked configuration of every job, by sweep."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_module("p2o.conf", version_base="1.3"):
        patch.setenv("OPENAI_API_KEY", "not-a-key")
        return {
            sweep: [load_config(compose("config", overrides=["run_dir=unused", *job])) for job in jobs_of(sweep)]
            for sweep in ("paper_table1", "paper_ablations", "paper_tau")
        }


def test_the_sweeps_are_the_published_tables(sweeps: dict[str, list[Config]]) -> None:
    table = [(Path(c.data.dataset).name, c.data.train_size, c.name) for c in sweeps["paper_table1"]]  # type: ignore[attr-defined]
    sets = (("DeepScaleR-Preview-Dataset", 5000), ("DeepMath-103K", 5000), ("DeepMath-103K", 10000))
    rows = ("grpo", "grpo_n12", "self_ref", "teacher_ref")
    assert table == [(*source, row) for source in sets for row in rows]
    assert [(c.gepa.variant, c.gepa.same_template, c.distillation.kind) for c in sweeps["paper_ablations"]] == [
        ("teacher_ref", False, "mask"),
        ("teacher_ref", True, "mask"),
        ("teacher_ref", False, "off"),
        ("off", False, "mask"),
    ]
    tau = [(c.hard_set.tau, c.gepa.variant, c.data.train_size) for c in sweeps["paper_tau"]]
    assert tau == [(1, "self_ref", 5000), (2, "self_ref", 5000), (4, "self_ref", 5000)]


def test_published_choices(sweeps: dict[str, list[Config]]) -> None:
    """What p2o does otherwise by default; sizes and rates are checked with the configuration tree."""
    jobs = [config for configs in sweeps.values() for config in configs]
    assert {config.name for config in jobs} == set(EXPERIMENTS)
    for config in jobs:
        gepa, policy = config.gepa, config.policy
        assert (config.scale, config.hard_set.rule, config.hard_set.plain_rollouts) == ("paper", "official", 0)
        assert config.distillation.mask_denominator == "all"
        assert (gepa.dev_samples, gepa.temperature, gepa.leak_filter, gepa.warm_start) == (1, 0.0, False, False)
        assert (policy.rollouts, config.gepa.variant) in {(6, gepa.variant), (12, "off")}
        assert (policy.loss, policy.baseline) == ("grpo", "group")
        assert (policy.clip_low, policy.clip_high, policy.dual_clip) == (0.2, 0.2, 3.0)
        assert (config.validation.every_rounds, config.validation.temperature, config.trainer.epochs) == (30, 0.0, 10)
        assert (config.reflector.temperature, config.reflector.max_new_tokens) == (0.6, 2048)


@pytest.mark.parametrize("data", DATA)
def test_published_sets(data: str, configure: Callable[..., Config]) -> None:
    config = configure(f"data={data}", "+scale=paper").data
    assert (config.val_size, config.seed) == (500, 42)
    assert config.train_size == (5000 if data.endswith("5k") else 10000)
    assert config.shuffle == data.startswith("deepscaler")  # type: ignore[attr-defined]
    assert config.prompt == "Let's think step by step and output the final answer within \\boxed{}.\n\n{question}"


@pytest.fixture
def two_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt phase ends with two templates of equal merit, each good for one dev question, whatever became of
    the proposals: random weights make none better than the empty one but by luck."""
    evolve = P2OModule.evolve_templates

    def planted(self: P2OModule, hard: HardSet) -> tuple[Evolution | None, str]:
        evolution, note = evolve(self, hard)
        if evolution is not None:
            solved = zip(("Think.", "Count."), evolution.dev_ids, strict=False)
            found = tuple(Template(text, dev_score=0.5, covers=frozenset({dev})) for text, dev in solved)
            assert len(found) == 2
            evolution = replace(evolution, pool=(*evolution.pool, *found), front=found)
        return evolution, note

    monkeypatch.setattr(P2OModule, "evolve_templates", planted)


@pytest.mark.usefixtures("two_templates")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_rounds_and_a_prompt_phase(experiment: str, configure: Callable[..., Config], questions: Path) -> None:
    """The same questions in both rounds, so that the hard ones of the first come again."""
    reflector = REFLECTOR.get(experiment, "strategies")
    sizes = ("data.train_size=24", "policy.questions_per_round=24")
    config = configure(
        f"+experiment={experiment}", *TINY, *sizes, f"data.dataset={questions}", f"reflector={reflector}"
    )
    result = train(config)
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert (summary["status"], summary["experiment"]) == ("completed", experiment)
    assert result.state.step == 2
    assert len(summary["epochs"]) == 2
    rows = rollouts(result)
    asked = {row["problem_id"] for row in rows[0]}  # some of the real ones are too long
    assert asked == {row["problem_id"] for row in rows[1]}
    assert len(rows[0]) == len(rows[1]) == len(asked) * config.policy.rollouts
    hard = {row["problem_id"] for row in rows[0]} - {
        problem for problem, correct in correct_by_problem(rows[0]).items() if correct >= config.hard_set.tau
    }
    assert summary["epochs"][0]["hard"] == len(hard), "the published rule, counted on the written rollouts"
    evolved = config.gepa.variant != "off"
    assert (result.run_dir / "evolution" / "epoch-000" / "pool.json").is_file() == evolved
    assert (summary["ledger"]["metric_calls"]["total"] > 0) == evolved
    never = {row["problem_id"] for row in rows[0] if not can_be_solved(row["problem_id"])}
    assert len(never) >= config.hard_set.min_size
    assert never <= hard
    if evolved:
        check_assignment(config, rows[1], hard)
    else:
        assert {row["template_id"] for row in rows[1]} == {"plain"}


def check_assignment(config: Config, rows: list[dict[str, Any]], hard: set[str]) -> None:
    """Hard questions, and no others, are answered under templates; one a group where that is what is studied."""
    used: dict[str, set[str]] = {}
    for row in rows:
        used.setdefault(row["problem_id"], set()).add(row["template_id"])
    templated = {problem for problem, templates in used.items() if templates != {"plain"}}
    assert templated == hard
    assert len(set().union(*(used[problem] for problem in hard))) > 1, "there is a choice"
    several = {problem for problem, templates in used.items() if len(templates) > 1}
    assert bool(several) != config.gepa.same_template


def test_updates_warm_up_and_the_best_checkpoint(configure: Callable[..., Config], generated: Path) -> None:
    """24 steps from 12 rounds; the schedule, a validation every 5 rounds, and the best of them on disk."""
    config = configure(
        "+experiment=grpo",
        *TINY,
        f"data.dataset={generated}",
        "policy.questions_per_round=3",
        "trainer.epochs=4",
        "trainer.rounds_per_epoch=3",
        "trainer.checkpoint_every=100",
        "validation.every_rounds=5",
        "policy.warmup_fraction=0.5",
    )
    result = train(config)
    assert result.state.step == 12
    assert [step for step, _ in result.state.validation.history] == [0, 5, 10, 12]
    last, best = (read_checkpoint(result.run_dir / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert last.scheduler["last_epoch"] == 24, "two steps a round"
    best_step, _ = result.state.validation.best or (None, None)
    assert best.state.step == best_step
    steps = {value["step"].item() for value in last.optimizer["state"].values()}
    assert len(steps) == 1
    assert max(steps) <= 24
    assert last.scheduler["_last_lr"] == [config.tuning.learning_rate], "warm-up is over after half of the steps"
    assert all(torch.isfinite(tensor).all() for tensor in last.trainable.values())


def rollouts(result: RunResult) -> list[list[dict[str, Any]]]:
    return [pq.read_table(path).to_pylist() for path in sorted((result.run_dir / "rollouts").glob("*.parquet"))]


def correct_by_problem(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["problem_id"]] = counts.get(row["problem_id"], 0) + (row["outcome"] == "correct")
    return counts
