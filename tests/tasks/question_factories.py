"""Factories as a user writes them, good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from p2o.config.schema import CustomData
from p2o.tasks.problem_set import Unusable
from p2o.types import Problem


def doubles(data: CustomData) -> tuple[Iterator[Problem], list[Problem]]:
    """``How much is 2 times i?``; the training part begins with the last held-out question."""
    times, held_out = data.params["times"], data.val_size or 0
    rows = [Problem(f"q{i}", f"How much is {times} times {i}?", str(times * i), "doubles") for i in range(100)]
    return iter(rows[held_out - 1 : held_out + (data.train_size or 0)]), rows[:held_out]


def with_an_unusable_row(data: CustomData) -> tuple[list[Any], list[Problem]]:
    train, val = doubles(data)
    return [*train, Unusable("question about nothing", "row 7", "?")], val


def flat(data: CustomData) -> list[Problem]:
    return list(doubles(data)[1])


def texts(data: CustomData) -> tuple[list[str], list[str]]:
    return ["How much is 1 plus 1?"], ["2"]


def nothing(data: CustomData) -> None:
    return None
