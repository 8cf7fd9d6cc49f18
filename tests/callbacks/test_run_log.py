from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from p2o import json_lines
from p2o.algorithm.state import RunState, Stage
from p2o.callbacks.growing_files import file_sizes, rewind_files
from p2o.callbacks.run_log import RunLog
from p2o.config import Config
from p2o.environment import record_overrides
from p2o.logs import TERMINAL
from p2o.reporting.epoch_summary import EpochSummary, epoch_line
from p2o.run_folder import open_run_folder
from p2o.types import template_id

Play = Callable[..., Any]
TRAINER: Any = None


@pytest.fixture
def state() -> RunState:
    return RunState(stage=Stage.POLICY)


def events(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalar(accumulator: EventAccumulator, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


def text(accumulator: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(f"{tag}/text_summary")]


def test_a_run_can_be_read_back_from_tensorboard(config: Config, state: RunState, play: Play) -> None:
    run = play(config, state)
    run.epoch()
    run.epoch()
    run.logger.experiment.flush()
    read = events(run.run_dir)
    assert scalar(read, "rollout/reward") == [(step, 2 / 6) for step in (1, 2, 3, 4)]
    assert scalar(read, "rollout/success_plain") == [(step, 1 / 4) for step in (1, 2, 3, 4)]
    assert scalar(read, "rollout/success_templated") == [(step, 1 / 2) for step in (1, 2, 3, 4)]
    assert scalar(read, "policy/loss") == [(step, 0.1 * step) for step in (1, 2, 3, 4)]
    assert scalar(read, "time/update") == [(step, 0.25) for step in (1, 2, 3, 4)]
    assert scalar(read, "ledger/generated_tokens/policy") == [(step, 100 * step) for step in (1, 2, 3, 4)]
    assert scalar(read, "validation/accuracy") == [(2, 0.2), (4, 0.4)]
    assert scalar(read, "epoch/hard") == [(2, 4), (4, 4)]
    assert scalar(read, "epoch/evolved_pass_at_1") == [(2, 0.5), (4, 0.5)]


def test_every_pattern_of_the_layout_finds_a_scalar(config: Config, state: RunState, play: Play) -> None:
    run = play(config, state)
    run.epoch(evolve=True)
    run.logger.experiment.flush()
    read = events(run.run_dir)
    (event,) = read.Tensors(CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert "Figure 3" in layout.category[0].title
    tags = read.Tags()["scalars"]
    for pattern in (tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag):
        assert any(re.search(pattern, tag) for tag in tags), pattern


def test_an_evolution_is_told_in_files_scalars_and_words(config: Config, state: RunState, play: Play) -> None:
    run = play(config, state)
    run.epoch(evolve=True)
    run.logger.experiment.flush()
    folder = run.run_dir / "evolution" / "epoch-000"
    pool = json.loads((folder / "pool.json").read_text())
    assert [template["text"] for template in pool["pool"]] == ["", "Spell <b>slowly</b>.\nThen answer.", "Count twice."]
    assert [template["chosen"] for template in pool["pool"]] == [False, True, False]
    assert [template["uses"] for template in pool["pool"]] == [1, 2, 0]
    assert pool["pool"][2]["parents"] == [pool["pool"][1]["id"]]
    assert pool["pool"][1]["covers"] == ["a", "b", "c"]
    assert (pool["epoch"], pool["step"], pool["rejected"]["leak"], pool["seed_dev_score"]) == (0, 2, 2, 0.25)
    assignment = json.loads((folder / "assignment.json").read_text())
    assert assignment["by_problem"]["hard"][0] == "plain"
    read = events(run.run_dir)
    assert scalar(read, "evolution/best_dev_score") == [(2, 0.75)]
    assert scalar(read, "evolution/solved") == [(2, 4)]
    assert scalar(read, "evolution/refused") == [(2, 3)]
    ((step, words),) = text(read, "templates")
    assert step == 2
    assert "Count twice" in words
    best = json.loads((run.run_dir / "summary.json").read_text())["best_templates"]
    assert [(template["dev_score"], template["covers"]) for template in best] == [(0.75, 3), (0.5, 2)]
    assert best[1]["id"] == template_id("Count twice.")


def test_the_files_say_the_same_and_the_summary_is_as_designed(config: Config, state: RunState, play: Play) -> None:
    run = play(config, state)
    assert json.loads((run.run_dir / "summary.json").read_text())["status"] == "running"
    run.validation(0.05)
    run.epoch()
    rows = list(json_lines.read(run.run_dir / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 2]
    assert rows[3]["validation/accuracy"] == 0.2
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["status"] == "running"
    assert (summary["experiment"], summary["seed"]) == (config.name, 3)
    assert summary["val_accuracy"] == {"initial": 0.05, "best": 0.2, "final": 0.2}
    assert summary["epochs"][0]["hard"] == 4
    assert summary["ledger"]["generated_tokens"] == {
        "policy": 200, "evolution": 0, "reflection": 0, "validation": 0, "total": 200,
    }  # fmt: skip
    assert summary["ledger"]["seconds"]["total"] == 1.0
    assert [path.name for path in (run.run_dir / "rollouts").iterdir()] == ["epoch-000.parquet"]


def test_a_resumed_run_leaves_what_an_uninterrupted_one_leaves(
    configure: Callable[..., Config], play: Play, tmp_path: Path
) -> None:
    left = {}
    for name in ("whole", "resumed"):
        config = configure("+experiment=teacher_ref", "model=tiny", f"run_dir={tmp_path / name}")
        run = play(config, RunState(stage=Stage.POLICY))
        run.epoch(evolve=True)
        if name == "resumed":
            run.round()
            run.logger.experiment.flush()
            saved, sizes = run.state.to_json(), file_sizes(run.run_dir)
            run.epoch(evolve=True)
            run.round()
            run.logger.experiment.close()
            rewind_files(run.run_dir, sizes)
            run = play(config, RunState.from_json(saved))
        run.epoch()
        folder = run.finish()
        read = events(folder)
        left[name] = (
            list(json_lines.read(folder / "metrics.jsonl")),
            json.loads((folder / "summary.json").read_text()),
            sorted(path.name for path in (folder / "rollouts").iterdir()),
            sorted(str(path.relative_to(folder)) for path in (folder / "evolution").glob("*/*.json")),
            [(e.step, e.value) for tag in ("rollout/reward", "validation/accuracy") for e in read.Scalars(tag)],
        )
    assert left["whole"] == left["resumed"]


def test_the_end_names_final_metrics_and_where_to_look(config: Config, state: RunState, play: Play) -> None:
    run = play(config, state)
    run.validation(0.05)
    run.epoch(evolve=True)
    record_overrides(run.run_dir, ["+experiment=grpo", "seed=3", "tuning=full", "policy.rollouts=4", "run_dir=x"])
    with TERMINAL.capture() as captured:
        run.finish()
    said = captured.get()
    assert "initial 0.050 → best 0.200 → final 0.200" in said
    assert "tensorboard --logdir" in said
    assert "generated tokens" in said
    assert "Count twice." in said
    assert json.loads((run.run_dir / "summary.json").read_text())["status"] == "completed"
    assert "Count twice." in (run.run_dir / "report.html").read_text()
    read = events(run.run_dir)
    assert scalar(read, "final/val_accuracy") == [(2, 0.2)]
    data = read.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    parameters = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert parameters["Seed"].number_value == 3
    assert parameters["Experiment"].string_value == config.name
    assert parameters["Overrides"].string_value == "policy.rollouts=4 tuning=full"
    assert parameters["resume"].string_value == "True"
    assert parameters["tuning.kind"].string_value == "lora"
    assert not any("run_dir" in name for name in parameters)


def test_a_run_that_a_budget_ended_is_stopped(config: Config) -> None:
    reporter = RunLog(open_run_folder(config), config)
    module: Any = SimpleNamespace(state=RunState(stage=Stage.DONE, stop_reason="budget.tokens=100 is spent"))
    reporter.on_fit_end(TRAINER, module)
    summary = json.loads((reporter.run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "budget.tokens=100 is spent")


def test_a_number_that_is_none_does_not_stop_the_run(config: Config, make_scored: Callable[..., Any]) -> None:
    reporter = RunLog(Path(config.run_dir), config)
    state = RunState(stage=Stage.POLICY, step=1, round=1)
    module: Any = SimpleNamespace(state=state, sampler=SimpleNamespace(engine=SimpleNamespace(scalars=dict)))
    outputs = {"groups": [make_scored("q", "cw")], "metrics": {"loss": float("nan")}, "seconds": {}}
    reporter.on_train_batch_end(TRAINER, module, outputs)
    (row,) = json_lines.read(reporter.metrics)
    assert row["policy/loss"] is None
    assert row["rollout/reward"] == 0.5


def test_an_epoch_in_a_line(config: Config, state: RunState, play: Play) -> None:
    assert play(config, state).epoch() == "epoch 0  reward 0.50  accuracy 0.200  hard 4 (1 all wrong)"
    summary = EpochSummary(
        1, 4, 0.25, hard=9, hard_all_fail=5, templates=2, templates_best_dev=0.5, dev_seed_score=0.125, note="why"
    )
    assert epoch_line(summary) == (
        "epoch 1  reward 0.25  hard 9 (5 all wrong)  templates 2 (best dev 0.50, empty 0.12)  [why]"
    )
