"""Fixtures shared by rooms: the configuration as the command composes it, a small policy, a run that plays itself."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import questions
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from player import Player, build_group, build_scored
from teacher_server import Teacher, serving

from p2o.algorithm.advantages import GroupAdvantages
from p2o.algorithm.state import RunState, Stage
from p2o.config import Config, load_config, register_schemas
from p2o.config.schema import FullTuning, LoraTuning, RandomModel, TuningConfig
from p2o.launcher import register_launcher
from p2o.policy.model import Policy, load_policy
from p2o.types import Group

CONF = Path(__file__).parents[1] / "conf"


register_schemas()
register_launcher()


@pytest.fixture(scope="session", autouse=True)
def _questions_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "questions"
    folder.mkdir(exist_ok=True)
    os.environ[questions.FOLDER] = str(folder)
    questions.keep_in(folder)


@cache
def _composed(overrides: tuple[str, ...], folder: Path) -> DictConfig:
    """Composing takes a third of a second, and many tests ask for the same. ``folder`` is where Hydra looks too."""
    with initialize_config_module("p2o.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture
def compose_tree(tmp_path: Path) -> Callable[..., DictConfig]:
    """``compose_tree("+experiment=grpo", ...)``: the composed tree, run folder in the test's own folder."""

    def build(*overrides: str) -> DictConfig:
        tree = copy.deepcopy(_composed(("run_dir=RUN", *overrides), Path.cwd()))
        if tree.run_dir == "RUN":
            tree.run_dir = str(tmp_path / "run")
        return tree

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


@pytest.fixture
def make_group() -> Callable[..., Group]:
    return build_group


@pytest.fixture
def make_scored() -> Callable[..., GroupAdvantages]:
    return build_scored


@pytest.fixture
def config(configure: Callable[..., Config]) -> Config:
    return configure("+experiment=teacher_ref", "model=tiny", "seed=3", "callbacks.rollout_samples.count=2")


@pytest.fixture
def play() -> Callable[[Config, RunState], Player]:
    """``play(config, state)``: a run that continues from ``state``."""
    return Player


@pytest.fixture
def play_run(configure: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """``play_run("name", "+experiment=grpo", ...)``: the folder of a finished run of two epochs."""

    def run(name: str, *overrides: str, text: str = "answer", evolve: bool = True) -> Path:
        config = configure("model=tiny", f"run_dir={tmp_path / name}", *overrides)
        player = Player(config, RunState(stage=Stage.POLICY))
        player.validation(0.01 * config.seed)
        player.epoch(text=text, evolve=evolve)
        player.epoch(text=text)
        return player.finish()

    return run
