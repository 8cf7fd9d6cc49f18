"""Whole jobs on a GPU, with a tiny model: the trainer's part of it, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from p2o.algorithm.module import P2OModule
from p2o.algorithm.state import Stage
from p2o.config import Config
from p2o.job import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TINY = ("debug=tiny", "trainer=gpu", "reward=function", "reward.function=lucky.score", "reward.extract=[whole]")


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overrides", [("+experiment=teacher_ref",), ("+experiment=self_ref", "tuning=full")])
def test_a_job_runs(overrides: tuple[str, ...], configure: Callable[..., Config]) -> None:
    result = train(configure(*overrides, *TINY))
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["ledger"]["trained_tokens"]["policy"] > 0
    assert summary["ledger"]["metric_calls"]["total"] > 0
    assert max(row.get("policy/mismatch_mean", 0.0) for row in rows(result.run_dir)) < 0.05


class Stopped(BaseException):
    """Stands for the end of the process."""


def test_a_job_goes_on(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at a call of the sampler. A GPU adds in an order of its own, so no bits are compared."""
    config = configure("+experiment=teacher_ref", *TINY)
    sample, calls = P2OModule._sample, 0

    def stopping(self: P2OModule, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Stopped
        return sample(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(P2OModule, "_sample", stopping)
        with pytest.raises(Stopped):
            train(config)
    stopped = len(rows(Path(config.run_dir)))
    result = train(config)
    assert result.state.stage is Stage.DONE
    assert len(rows(result.run_dir)) > stopped > 0
