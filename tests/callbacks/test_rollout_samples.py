"""The pairs of answers in TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from player import SPELL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2o.callbacks.rollout_samples import RolloutSamples
from p2o.reporting.rollout_log import RolloutLog
from p2o.types import PLAIN


def test_the_most_telling_pairs_are_shown(make_scored: Callable[..., Any], tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts")
    groups = [make_scored(f"q{i}", "wc", (PLAIN, SPELL.id)) for i in range(3)] + [make_scored("r", "ww")]
    log.append(groups, epoch=0, round=1, step=2)
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer: Any = SimpleNamespace(loggers=[logger])
    module: Any = SimpleNamespace(run_dir=tmp_path, state=SimpleNamespace(epoch=0, step=2))
    RolloutSamples(count=2).on_alternation_end(trainer, module, None)  # type: ignore[arg-type]
    logger.experiment.flush()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    (event,) = read.Tensors("rollouts, plain and templated/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 2
    assert text.count("gold answer") == 2
    assert "answer 1 to q0" in text
