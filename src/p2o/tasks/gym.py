"""Procedural questions of reasoning-gym: a mixture of tasks, the same for the same ``data.seed``."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from p2o.config.schema import ReasoningGymData, TaskMix
from p2o.rewards.gym import pack
from p2o.tasks.problem_set import DataError, DataReport, distinct, question_id
from p2o.types import Problem, derive_seed

OVERDRAW = 3
"""Small tasks repeat themselves: so many times the wanted questions are drawn, at most, to find distinct ones."""


def load(data: ReasoningGymData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """``train_size`` and ``val_size`` distinct questions, each split with the mixture's shares.

    Raises :class:`~p2o.tasks.DataError` for an unknown task, for arguments that it does not take, and where a task
    has too few distinct questions.
    """
    if not data.tasks:
        raise DataError("data.tasks is empty: give data.tasks.<name>={name: chain_sum}")
    if data.train_size is None or data.val_size is None:
        raise DataError("data=reasoning_gym makes as many questions as it is told: set data.train_size and val_size")
    weights = [mix.weight for mix in data.tasks.values()]
    sizes = zip(_shares(data.train_size, weights), _shares(data.val_size, weights), strict=True)
    train: list[Problem] = []
    val: list[Problem] = []
    for (key, mix), (train_size, val_size) in zip(data.tasks.items(), sizes, strict=True):
        problems = _problems(key, mix, train_size + val_size, data.seed, report)
        val += problems[:val_size]
        train += problems[val_size:]
    for part, name in ((train, "train"), (val, "val")):
        random.Random(derive_seed(data.seed, name)).shuffle(part)
    return train, val


def _shares(size: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of ``weights`` that sum to ``size``."""
    bounds = [round(size * part / sum(weights)) for part in accumulate(weights, initial=0.0)]
    return [stop - start for start, stop in pairwise(bounds)]


def _problems(key: str, mix: TaskMix, count: int, seed: int, report: DataReport) -> list[Problem]:
    found = DataReport(report.source)
    problems = distinct(_draw(key, mix, OVERDRAW * count, seed), found)[:count]
    if len(problems) < count:
        raise DataError(
            f"data.tasks.{key}: {mix.name} has only {len(problems)} distinct questions with {dict(mix.params)}, "
            f"{count} are wanted: widen its params, lower its weight or data.train_size"
        )
    report.rows += count
    return problems


def _draw(key: str, mix: TaskMix, count: int, seed: int) -> Iterator[Problem]:
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(mix.name, **mix.params, seed=derive_seed(seed, key) % 2**31, size=count)
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"data.tasks.{key}: {mix.name} with {dict(mix.params)}: {error}") from error
    for entry in dataset:
        yield _problem(key, mix, entry)


def _problem(key: str, mix: TaskMix, entry: dict[str, Any]) -> Problem:
    question = str(entry["question"])
    answer = entry["answer"]
    metadata = {"task": mix.name, "params": dict(mix.params), "entry": pack(dict(entry))}
    return Problem(question_id(key, question), question, "" if answer is None else str(answer), key, metadata)
