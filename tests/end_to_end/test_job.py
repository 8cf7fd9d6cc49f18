"""The whole job on a tiny random-weight model: every experiment, resume, and what ends up on disk."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lucky
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o.algorithm.module import P2OModule
from p2o.algorithm.state import Stage
from p2o.callbacks.checkpoint import read_checkpoint
from p2o.config import Config
from p2o.job import RunResult, train

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")} - {"grpo_equal_tokens"})
LUCKY = (
    "debug=tiny",
    "reward=function",
    "reward.function=lucky.score_some",
    "reward.extract=[whole]",
    f"trainer.threads={os.environ.get('P2O_TEST_THREADS', '1')}",
)


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return summary | {"ledger": {key: value for key, value in summary["ledger"].items() if key != "seconds"}}


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, ...], tuple[Config, RunResult]]:
    return {}


@pytest.fixture
def finished(
    runs: dict[tuple[str, ...], tuple[Config, RunResult]],
    configure: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Config, RunResult]]:
    """``finished("grpo", ...)``: the configuration and the result of a run to the end, made once for all tests."""

    def run(experiment: str, *overrides: str) -> tuple[Config, RunResult]:
        key = experiment, *overrides
        if key not in runs:
            folder = tmp_path_factory.mktemp(experiment) / "run"
            config = configure(f"+experiment={experiment}", *LUCKY, *overrides, f"run_dir={folder}")
            runs[key] = config, train(config)
        return runs[key]

    return run


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, finished: Callable[..., tuple[Config, RunResult]]) -> None:
    config, result = finished(experiment)
    summary = summary_of(result.run_dir)
    assert (summary["status"], summary["experiment"]) == ("completed", experiment)
    assert [row["epoch"] for row in summary["epochs"]] == [0, 1]
    assert summary["ledger"]["trained_tokens"]["policy"] > 0
    rows = pq.read_table(result.run_dir / "rollouts" / "epoch-000.parquet").to_pylist()
    never = {row["problem_id"] for row in rows if not lucky.can_be_solved(row["problem_id"])}
    assert len(never) >= config.hard_set.min_size
    assert summary["epochs"][0]["hard"] >= len(never)
    evolved = config.gepa.variant != "off"
    assert evolved == (experiment not in {"grpo", "grpo_n12"})
    assert (summary["ledger"]["metric_calls"]["total"] > 0) == evolved
    k = 12 if experiment == "grpo_n12" else 6
    assert len(rows) == 16 * k
    assert {row["template_id"] for row in rows} == {"plain"}, "nothing is evolved before the first epoch"


def test_a_run_leaves_what_its_folder_promises(finished: Callable[..., tuple[Config, RunResult]]) -> None:
    config, result = finished("teacher_ref")
    run_dir = result.run_dir
    for name in (
        "config.yaml",
        "environment.json",
        "log.txt",
        "summary.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):
        assert (run_dir / name).is_file(), name
    assert json.loads((run_dir / "evolution" / "epoch-000" / "pool.json").read_text())["pool"]
    base = AutoModelForCausalLM.from_pretrained(Path(config.model.path).expanduser())
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    model = PeftModel.from_pretrained(base, run_dir / "model")
    ids = tokenizer("1 + 1 =", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    assert {"validation/accuracy", "rollout/reward", "evolution/best_dev_score"} <= set(events.Tags()["scalars"])


def test_a_finished_run_says_so_and_changes_nothing(finished: Callable[..., tuple[Config, RunResult]]) -> None:
    config, result = finished("grpo")
    run_dir = result.run_dir
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != "config.yaml"}
    again = train(config)
    assert again.already_done
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != "config.yaml"} == before


class Interrupted(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


STOPPED_AT = (
    (Stage.START, 0, 1),
    (Stage.POLICY, 0, 3),
    (Stage.PROMPT, 0, 2),  # the first call is the validation
    (Stage.PROMPT, 0, 2),
    (Stage.POLICY, 1, 2),
    (Stage.PROMPT, 1, 1),
)
"""By process: stage, epoch and call of the sampler there at which it is stopped."""


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_resume_equals_no_interruption(
    tuning: str,
    configure: Callable[..., Config],
    finished: Callable[..., tuple[Config, RunResult]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Process after process is stopped at a call of the sampler: validation, rounds and evolution all make them."""
    tuned = () if tuning == "lora" else (f"tuning={tuning}",)
    _, whole = finished("teacher_ref", *tuned)
    cut = configure("+experiment=teacher_ref", *LUCKY, *tuned)
    sample = P2OModule._sample
    for *where, call in STOPPED_AT:
        calls = itertools.count(1)

        def interrupting(
            self: P2OModule, *args: Any, where: list[Any] = where, call: int = call, calls: Iterator[int] = calls
        ) -> Any:
            if [self.state.stage, self.state.epoch] == where and next(calls) == call:
                raise Interrupted
            return sample(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(P2OModule, "_sample", interrupting)
            with pytest.raises(Interrupted):
                train(cut)
    resumed = train(cut)
    assert resumed.state.stage is Stage.DONE

    one, two = (read_checkpoint(run.run_dir / "checkpoints" / "last.ckpt") for run in (whole, resumed))
    assert one.trainable.keys() == two.trainable.keys()
    assert all(torch.equal(one.trainable[name], two.trainable[name]) for name in one.trainable)
    summaries = [without_seconds(summary_of(run.run_dir)) for run in (whole, resumed)]
    assert summaries[0] == summaries[1]
    for name in ("evolution/epoch-000/pool.json", "evolution/epoch-000/assignment.json"):
        assert (whole.run_dir / name).read_text() == (resumed.run_dir / name).read_text()
    tables = [pq.read_table(run.run_dir / "rollouts" / "epoch-001.parquet") for run in (whole, resumed)]
    assert tables[0].equals(tables[1])


def test_the_baseline_differs_only_in_what_the_experiment_says(
    finished: Callable[..., tuple[Config, RunResult]],
) -> None:
    runs = [finished(name)[1].run_dir for name in ("teacher_ref", "grpo")]
    first = [pq.read_table(run / "rollouts" / "epoch-000.parquet") for run in runs]
    assert first[0].equals(first[1]), "the first epoch has no templates: the runs are one and the same"


def test_a_budget_of_tokens_ends_the_run(configure: Callable[..., Config]) -> None:
    result = train(configure("+experiment=grpo_equal_tokens", *LUCKY, "budget.tokens=600"))
    assert result.state.stop_reason is not None
    assert result.state.stop_reason.startswith("budget.tokens=600 is spent")
    assert result.state.step < 8
    assert summary_of(result.run_dir)["status"] == "stopped"


@pytest.mark.parametrize("limit", [13, 20])
def test_a_budget_of_template_evaluations_is_never_exceeded(limit: int, configure: Callable[..., Config]) -> None:
    """A prompt phase gets what is left. Where that pays for no proposal, the run ends before another round."""
    result = train(configure("+experiment=teacher_ref", *LUCKY, f"budget.metric_calls={limit}"))
    summary = summary_of(result.run_dir)
    assert summary["ledger"]["metric_calls"]["total"] <= limit
    if limit == 13:  # four dev questions, and a proposal may take ten
        assert summary["stop_reason"] == "budget.metric_calls=13 does not cover another template"
        assert (summary["status"], result.state.step, result.state.epoch) == ("stopped", 4, 1)
    else:
        assert summary["ledger"]["metric_calls"]["total"] > 0
