"""What the configuration names and is not there is missed before a model is loaded: here none could be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from teacher_server import Teacher

from p2o.config import Config, ConfigError
from p2o.config.schema import CustomReflector, CustomRollout
from p2o.evolution.reflectors import ReflectorError, UnreachableError
from p2o.extensions import ExtensionError
from p2o.job import train
from p2o.policy.builders import ModelError

ABSENT = ("model=hub", "model.path=/absent/model", "trainer.threads=1", "trainer.progress=false", "logger=off")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["policy.loss=nosuch.mod"], ExtensionError, r"policy\.loss=nosuch\.mod: .*PYTHONPATH"),
        (["policy.loss=math.pi"], ExtensionError, r"policy\.loss=math\.pi is a float"),
        (["reflector.strategies=/nope.yaml"], ReflectorError, r"reflector\.strategies=/nope\.yaml"),
        (
            ["reflector=openai", "reflector.base_url=foo"],
            ReflectorError,
            r"reflector\.base_url=foo .*not an address",
        ),
        (["reflector=openai", "reflector.base_url=http://127.0.0.1:1"], UnreachableError, "cannot be reached"),
        pytest.param(
            ["trainer=gpu"],
            ConfigError,
            "use trainer=cpu",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one"),
        ),
    ],
)
def test_it_is_missed_first(
    overrides: list[str], error: type[Exception], message: str, configure: Callable[..., Config]
) -> None:
    config = configure(*ABSENT, *overrides)
    with pytest.raises(error, match=message):
        train(config)


@pytest.mark.parametrize("part", [CustomRollout(factory="nosuch.mod"), CustomReflector(factory="nosuch.mod")])
def test_a_part_of_ones_own_too(part: CustomRollout | CustomReflector, configure: Callable[..., Config]) -> None:
    node = "rollout" if isinstance(part, CustomRollout) else "reflector"
    config = dataclasses.replace(configure(*ABSENT), **{node: part})
    with pytest.raises(ExtensionError, match=rf"{node}\.factory=nosuch\.mod: .*PYTHONPATH"):
        train(config)


def test_a_teacher_that_is_not_asked_is_not_missed(configure: Callable[..., Config], teacher: Teacher) -> None:
    overrides = ("reflector=openai", f"reflector.base_url={teacher.url}", "reflector.model=kimi")
    for more, greeted in (("gepa=off", 0), ("gepa=self_ref", 0), ("gepa=teacher_ref", 1)):
        with pytest.raises(ModelError, match="/absent/model"):
            train(configure(*ABSENT, *overrides, more))
        assert teacher.greeted == greeted
