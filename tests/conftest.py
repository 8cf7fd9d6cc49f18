"""Fixtures shared by all rooms: composing the configuration as the command does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from teacher_server import Teacher, serving

from p2o.config import Config, load_config, register_schemas
from p2o.config.launcher import register_launcher

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
