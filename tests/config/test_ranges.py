"""Every number and choice of the configuration is bounded, by a table or by a rule."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from p2o.config import Config, ConfigError, EvaluateConfig
from p2o.config.load import SCHEMAS
from p2o.config.ranges import CHOICES, NOT_NEGATIVE, POSITIVE, is_address, out_of_range

BY_A_RULE = {
    *("policy.warmup_fraction", "policy.dual_clip", "tuning.dropout"),
    *("rollout.temperature", "rollout.top_p", "rollout.importance_cap", "rollout.gpu_memory_utilization"),
    *("distillation.low", "distillation.high", "hard_set.plain_rollouts", "gepa.solve_threshold", "confidence"),
}
ANY = {"seed", "model.seed"}


def numbers(cls: type, prefix: str = "") -> Iterator[str]:
    """The keys that hold a number, over all choices of every node."""
    for field in dataclasses.fields(cls):
        key, kind = f"{prefix}{field.name}", typing.get_type_hints(cls)[field.name]
        if kind in (int, float, int | None, float | None):
            yield key
        elif dataclasses.is_dataclass(kind):
            for choice in {kind, *SCHEMAS.get(key, {}).values()}:
                yield from numbers(typing.cast(type, choice), f"{key}.")


def holding(key: str, value: object) -> SimpleNamespace:
    """A configuration of one key."""
    for part in reversed(key.split(".")):
        value = SimpleNamespace(**{part: value})
    return typing.cast(SimpleNamespace, value)


def test_every_number_has_bounds_and_no_table_names_a_key_that_is_not_there() -> None:
    there = {*numbers(Config), *numbers(EvaluateConfig)}
    assert there == {*POSITIVE, *NOT_NEGATIVE, *BY_A_RULE, *ANY}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *((key, value, f"{key}={value} must be above 0") for key in POSITIVE for value in (0, -1, float("nan"))),
        *((key, value, f"{key}={value} must not be below 0") for key in NOT_NEGATIVE for value in (-1, float("nan"))),
        *((key, "foo", f"{key}=foo is none of {', '.join(values)}") for key, values in CHOICES.items()),
    ],
)
def test_what_no_run_could_use_is_named(key: str, value: object, said: str) -> None:
    assert list(out_of_range(holding(key, value))) == [said]
    assert list(out_of_range(holding(key, CHOICES[key][0] if key in CHOICES else 1))) == []


def test_what_is_not_set_is_not_judged() -> None:
    assert list(out_of_range(holding("gepa.metric_calls", None))) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accelerator=tpux", "trainer.accelerator=tpux is none of cpu, gpu"),
        ("validation.every_rounds=0", "validation.every_rounds=0 must be above 0"),
        ("tuning.r=0", "tuning.r=0 must be above 0"),
        ("rollout.max_rows=0", "rollout.max_rows=0 must be above 0"),
        ("data.train_size=-3", "data.train_size=-3 must be above 0"),
        ("model.attn_implementation=foo", "model.attn_implementation=foo is none of sdpa"),
    ],
)
def test_the_command_refuses_it(override: str, message: str, configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(override)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("http://localhost:8000", True),
        ("https://api.example.com/v1", True),
        ("http://[::1]:8000/v1", True),
        ("foo", False),
        ("localhost:8000", False),
        ("http://", False),
        ("http://host:port", False),
        ("http://[::1", False),
        ("ftp://host", False),
    ],
)
def test_addresses(text: str, good: bool) -> None:
    assert is_address(text) == good
