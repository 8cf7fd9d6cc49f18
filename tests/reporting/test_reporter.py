from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from p2o.config import Config
from p2o.reporting import json_lines
from p2o.reporting.reporter import Reporter
from p2o.reporting.terminal import TERMINAL
from p2o.training.state import EpochSummary, RunState, Stage
from p2o.types import PLAIN, Group, Phase

MakeGroup = Callable[..., Group]


def build(config: Config, state: RunState) -> tuple[Reporter, TensorBoardLogger]:
    run_dir = Path(config.run_dir)
    logger = TensorBoardLogger(
        run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=state.step + 1
    )
    reporter = Reporter(run_dir, config, logger=logger)
    reporter.start(state)
    return reporter, logger


def play_round(reporter: Reporter, state: RunState, make_group: MakeGroup) -> dict[str, float]:
    state.round += 1
    state.step += 1
    state.ledger.add(Phase.POLICY, generated_tokens=100, rollouts=6, seconds=0.5)
    groups = [make_group(f"q{state.step}", "cwu"), make_group("hard", "wwc", (PLAIN, "z", "z"))]
    metrics = {"loss": 0.1 * state.step, "grad_norm": 2.0}
    return reporter.round(state, groups, metrics, seconds={"rollout": 0.5, "update": 0.25})


def play_epoch(reporter: Reporter, state: RunState, make_group: MakeGroup) -> None:
    for _ in range(2 - state.round):
        play_round(reporter, state, make_group)
    accuracy = 0.1 * state.step
    state.validation.history.append((state.step, accuracy))
    reporter.validation(state, accuracy, make_group("held-out", "cw").rollouts)
    summary = EpochSummary(
        state.epoch, state.step, 0.5, accuracy, hard=4, hard_all_fail=1, plain_pass_at_1=0.25, evolved_pass_at_1=0.5
    )
    state.epochs.append(summary)
    state.epoch += 1
    state.round = 0
    reporter.epoch(state, summary)


def events(config: Config) -> EventAccumulator:
    accumulator = EventAccumulator(str(Path(config.run_dir) / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalar(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


def text(accumulator: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(f"{tag}/text_summary")]


def test_a_run_can_be_read_back_from_tensorboard(config: Config, make_group: MakeGroup) -> None:
    state = RunState(stage=Stage.POLICY)
    reporter, logger = build(config, state)
    for _ in range(2):
        play_epoch(reporter, state, make_group)
    logger.experiment.flush()
    read = events(config)
    assert scalar(read, "rollout/reward") == [(step, 2 / 6) for step in (1, 2, 3, 4)]
    assert scalar(read, "rollout/success_plain") == [(step, 1 / 4) for step in (1, 2, 3, 4)]
    assert scalar(read, "rollout/success_templated") == [(step, 1 / 2) for step in (1, 2, 3, 4)]
    assert scalar(read, "policy/loss") == [(step, 0.1 * step) for step in (1, 2, 3, 4)]
    assert scalar(read, "time/update") == [(step, 0.25) for step in (1, 2, 3, 4)]
    assert scalar(read, "ledger/generated_tokens/policy") == [(step, 100 * step) for step in (1, 2, 3, 4)]
    assert scalar(read, "validation/accuracy") == [(2, 0.2), (4, 0.4)]
    assert scalar(read, "epoch/hard") == [(2, 4), (4, 4)]
    assert scalar(read, "epoch/evolved_pass_at_1") == [(2, 0.5), (4, 0.5)]
    (first, second) = text(read, "rollouts, plain and templated")
    assert first[0] == 2
    assert second[0] == 4
    assert "answer 2 to hard" in first[1]
    assert first[1].count("gold answer") == config.logger.samples


def test_the_layout_names_scalars_that_exist(config: Config, make_group: MakeGroup) -> None:
    state = RunState(stage=Stage.POLICY)
    reporter, logger = build(config, state)
    play_epoch(reporter, state, make_group)
    logger.experiment.flush()
    read = events(config)
    (event,) = read.Tensors(CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = read.Tags()["scalars"]
    learning = layout.category[0]
    assert "Figure 3" in learning.title
    for chart in learning.chart:
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, tag) for tag in tags), pattern


def test_the_files_say_the_same_and_the_summary_is_as_designed(config: Config, make_group: MakeGroup) -> None:
    state = RunState(stage=Stage.POLICY)
    state.validation.history.append((0, 0.05))
    reporter, _ = build(config, state)
    run_dir = Path(config.run_dir)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "running"
    play_epoch(reporter, state, make_group)
    rows = list(json_lines.read(run_dir / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 2, 2]
    assert rows[2]["validation/accuracy"] == 0.2
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "running"
    assert (summary["experiment"], summary["seed"]) == (config.name, 3)
    assert summary["val_accuracy"] == {"initial": 0.05, "best": 0.2, "final": 0.2}
    assert summary["epochs"][0]["hard"] == 4
    assert summary["ledger"]["generated_tokens"] == {
        "policy": 200, "evolution": 0, "reflection": 0, "validation": 0, "total": 200,
    }  # fmt: skip
    assert summary["ledger"]["seconds"]["total"] == 1.0
    assert [path.name for path in (run_dir / "rollouts").iterdir()] == ["epoch-000.parquet"]


def test_a_resumed_run_leaves_what_an_uninterrupted_one_leaves(
    configure: Callable[..., Config], make_group: MakeGroup, tmp_path: Path
) -> None:
    runs = {}
    for name, stop_after in (("whole", None), ("resumed", 3)):
        config = configure("+experiment=grpo", "model=tiny", f"run_dir={tmp_path / name}")
        state = RunState(stage=Stage.POLICY)
        reporter, logger = build(config, state)
        play_epoch(reporter, state, make_group)
        if stop_after is not None:
            play_round(reporter, state, make_group)
            saved = state.to_json()
            play_epoch(reporter, state, make_group)
            play_round(reporter, state, make_group)
            logger.experiment.close()
            state = RunState.from_json(saved)
            reporter, logger = build(config, state)
        play_epoch(reporter, state, make_group)
        state.stage = Stage.DONE
        reporter.finish(state)
        logger.experiment.close()
        folder = Path(config.run_dir)
        read = events(config)
        runs[name] = (
            list(json_lines.read(folder / "metrics.jsonl")),
            json.loads((folder / "summary.json").read_text()),
            sorted(path.name for path in (folder / "rollouts").iterdir()),
            [(e.step, e.value) for tag in ("rollout/reward", "validation/accuracy") for e in read.Scalars(tag)],
        )
    assert runs["whole"] == runs["resumed"]


def test_the_end_names_final_metrics_and_where_to_look(config: Config, make_group: MakeGroup) -> None:
    state = RunState(stage=Stage.POLICY)
    state.validation.history.append((0, 0.05))
    reporter, _ = build(config, state)
    play_epoch(reporter, state, make_group)
    with TERMINAL.capture() as captured:
        reporter.finish(state)
    assert json.loads((Path(config.run_dir) / "summary.json").read_text())["status"] == "completed"
    said = captured.get()
    assert "initial 0.050 → best 0.200 → final 0.200" in said
    assert "tensorboard --logdir" in said
    assert "generated tokens" in said
    read = events(config)
    assert scalar(read, "final/val_accuracy") == [(2, 0.2)]
    data = read.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    parameters = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert parameters["seed"].number_value == 3
    assert parameters["tuning.kind"].string_value == "lora"
    assert not any("run_dir" in name for name in parameters)


def test_a_run_that_a_budget_ended_is_stopped(config: Config) -> None:
    reporter = Reporter(Path(config.run_dir), config, logger=None)
    reporter.finish(RunState(stage=Stage.DONE, stop_reason="budget.tokens=100 is spent"))
    summary = json.loads((Path(config.run_dir) / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "budget.tokens=100 is spent")


def test_a_number_that_is_none_does_not_stop_the_run(config: Config, make_group: MakeGroup) -> None:
    reporter = Reporter(Path(config.run_dir), config, logger=None)
    state = RunState(stage=Stage.POLICY, step=1, round=1)
    reporter.round(state, [make_group("q", "cw")], {"loss": float("nan")}, seconds={})
    (row,) = json_lines.read(reporter.metrics)
    assert row["policy/loss"] is None
    assert row["rollout/reward"] == 0.5
