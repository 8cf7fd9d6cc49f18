"""Every key has its rules beside it: each number is bounded, and a value that no run could use is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from p2o.config import Config, ConfigError, EvaluateConfig
from p2o.config.evaluation import BenchmarksConfig, BenchmarkSet
from p2o.config.key import DOTTED_NAME, allowed, key, keys, out_of_range

SEEDS = {"seed", "model.seed"}
"""Any number will do."""


@dataclasses.dataclass
class Node:
    share: float = key(0.5, above=0, at_most=1)
    size: int | None = key(None, at_least=0)
    low: float = key(0.0, below=1)
    kind: str = key("a", choices=("a", "b"))
    loss: str = key("a", choices=("a", DOTTED_NAME))
    betas: list[float] = key([0.9], at_least=0, below=1)
    free: int = 0


@dataclasses.dataclass
class Root:
    node: Node = dataclasses.field(default_factory=Node)
    parts: dict[str, Node] = dataclasses.field(default_factory=dict)


def test_every_number_of_the_configuration_has_a_range() -> None:
    numbers = (int, float, int | None, float | None, list[int], list[float])
    free = {
        name
        for root in (Config, EvaluateConfig)
        for name, field, kind in keys(root)
        if kind in numbers and not allowed(field)
    }
    assert free == SEEDS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": 0}, "share=0 must be above 0 and at most 1"),
        ({"share": 1.01}, "share=1.01 must be above 0 and at most 1"),
        ({"share": float("nan")}, "share=nan must be above 0 and at most 1"),
        ({"share": 1}, None),
        ({"size": -1}, "size=-1 must be at least 0"),
        ({"size": 0}, None),
        ({"low": 1}, "low=1 must be below 1"),
        ({"kind": "c"}, "kind=c must be one of a, b"),
        ({"kind": "a.b"}, "kind=a.b must be one of a, b"),
        ({"kind": "b"}, None),
        ({"loss": "c"}, "loss=c must be one of a, a dotted name"),
        ({"loss": "mine.loss"}, None),
        ({"betas": [0.5, 1.0]}, "betas=[0.5, 1.0]: each must be at least 0 and below 1"),
        ({"betas": [0.5, 0.0]}, None),
        ({"free": -5}, None),
    ],
)
def test_what_no_run_could_use_is_named(values: dict[str, Any], said: str | None) -> None:
    assert list(out_of_range(Node(**values))) == ([said] if said else [])
    assert list(out_of_range(Root(Node(**values)))) == ([f"node.{said}"] if said else [])
    assert list(out_of_range(Root(parts={"x": Node(**values)}))) == ([f"parts.x.{said}"] if said else [])


def test_defaults_are_not_shared() -> None:
    Node().betas.append(0.1)
    assert Node().betas == [0.9]


def test_the_sets_of_an_evaluation_are_judged_too() -> None:
    sets = {"amc": BenchmarkSet(file="f", dataset="d", limit=0)}
    assert list(out_of_range(BenchmarksConfig(sets=sets))) == ["sets.amc.limit=0 must be above 0"]


def test_the_keys_of_all_choices_are_known() -> None:
    names = {name for name, _, _ in keys(Config)}
    assert {"rollout.max_rows", "rollout.probe_tolerance", "rollout.urls", "data.columns.id", "trainer"} <= names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accelerator=tpux", "trainer.accelerator=tpux must be one of cpu, gpu"),
        ("validation.every_rounds=0", "validation.every_rounds=0 must be above 0"),
        ("tuning.r=0", "tuning.r=0 must be above 0"),
        ("rollout.max_rows=0", "rollout.max_rows=0 must be above 0"),
        ("data.train_size=-3", "data.train_size=-3 must be above 0"),
        ("data.tasks.lcm.weight=0", "data.tasks.lcm.weight=0.0 must be above 0"),
        ("model.attn_implementation=foo", "model.attn_implementation=foo must be one of sdpa, eager"),
    ],
)
def test_the_command_refuses_it(override: str, message: str, configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(override)
