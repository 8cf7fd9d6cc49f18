"""Fixtures of a run that plays itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from player import Player, build_group, build_scored

from p2o.algorithm.advantages import GroupAdvantages
from p2o.algorithm.state import RunState, Stage
from p2o.config import Config
from p2o.types import Group


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
