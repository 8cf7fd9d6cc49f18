"""Fixtures shared by all rooms: composing the configuration as the command does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from teacher_server import Teacher, serving

from p2o.config import Config, load_config, register_schemas
from p2o.config.schema import FullTuning, LoraTuning, RandomModel, TuningConfig
from p2o.launcher import register_launcher
from p2o.policy.model import Policy, load_policy

CONF = Path(__file__).parents[1] / "conf"


register_schemas()
register_launcher()


@pytest.fixture
def compose_tree(tmp_path: Path) -> Callable[..., DictConfig]:
    """``compose_tree("+experiment=grpo", ...)``: the composed tree, run folder in the test's own folder."""

    def build(*overrides: str) -> DictConfig:
        with initialize_config_module("p2o.conf", version_base="1.3"):
            return compose("config", overrides=[f"run_dir={tmp_path / 'run'}", *overrides])

    return build


@pytest.fixture
def configure(compose_tree: Callable[..., DictConfig]) -> Callable[..., Config]:
    """``configure("+experiment=grpo", ...)``: the checked configuration."""

    def build(*overrides: str) -> Config:
        return load_config(compose_tree(*overrides))

    return build


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny"


@pytest.fixture
def tiny_policy(tiny_model: Path) -> Callable[..., Policy]:
    """``tiny_policy("lora" | "full")``: always the same weights."""

    def build(kind: str = "lora", **model: Any) -> Policy:
        tuning: TuningConfig = LoraTuning(r=4) if kind == "lora" else FullTuning()
        policy = load_policy(RandomModel(path=str(tiny_model), dtype="float32", **model), tuning, seed=0)
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
        return policy

    return build
