"""Composing ``conf/evaluate.yaml`` as the command does, and questions to judge on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from p2o.config import EvaluateConfig, load_evaluation

QUESTIONS = 24


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions, of different lengths."""
    path = tmp_path_factory.mktemp("questions") / "mine.jsonl"
    rows = [{"problem": f"What is {i} plus {'ten ' * (i % 3)}{i}?", "answer": str(2 * i)} for i in range(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def configure_evaluation(tmp_path: Path) -> Callable[..., EvaluateConfig]:
    """``configure_evaluation("benchmarks=[gsm8k]", ...)``: the checked configuration, in a folder of the test's own."""
    return lambda *overrides: composed(tmp_path / "judged", *overrides)


def composed(run_dir: Path, *overrides: str) -> EvaluateConfig:
    with initialize_config_module("p2o.conf", version_base="1.3"):
        return load_evaluation(compose("evaluate", overrides=[f"run_dir={run_dir}", *overrides]))
