"""Makes the questions of a reasoning-gym mixture: configuration as JSON in, problems as JSON out. See ``gym``."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import islice
from typing import Any

from p2o.rewards.gym_scores import pack
from p2o.tasks.problem_set import DataError, DataReport, Sieve, question_id
from p2o.types import Problem, derive_seed

OVERDRAW = 10
"""Small tasks repeat themselves: up to this many times the wanted questions are drawn to find distinct ones."""


def main() -> None:
    with redirect_stdout(sys.stderr):  # some tasks print
        made = make(json.load(sys.stdin))
    json.dump(made, sys.stdout)


def make(data: Mapping[str, Any]) -> dict[str, Any]:
    """The problems of each part as JSON can tell them, or what is wrong with the configuration, as "error"."""
    try:
        return {part: [asdict(problem) for problem in problems] for part, problems in mixture(data).items()}
    except DataError as error:
        return {"error": str(error)}


def mixture(data: Mapping[str, Any]) -> dict[str, list[Problem]]:
    """The held-out and the training questions, no question twice, whichever task made it.

    The held-out ones are drawn first, so that they stay the same whatever ``train_size`` is.

    Args:
        data: the fields of :class:`~p2o.config.schema.ReasoningGymData`.
    """
    tasks = data["tasks"]
    sieve = Sieve(DataReport("drawn"))  # a generator repeats itself, which is not a fault
    count = OVERDRAW * (data["train_size"] + data["val_size"])
    sources = {key: sieve(_draw(key, mix, data["seed"], count)) for key, mix in tasks.items()}
    made: dict[str, list[Problem]] = {}
    for part in ("val", "train"):
        sizes = shares(data[f"{part}_size"], [mix["weight"] for mix in tasks.values()])
        made[part] = []
        for key, size in zip(tasks, sizes, strict=True):
            found = list(islice(sources[key], size))
            if len(found) < size:
                raise DataError(
                    f"{_name(key, tasks[key])} lacks {size - len(found)} of {size} distinct questions wanted "
                    f"for {part}: widen its params, or lower its weight or data.{part}_size"
                )
            made[part] += found
        random.Random(derive_seed(data["seed"], part)).shuffle(made[part])
    return made


def shares(size: int, weights: Sequence[float]) -> list[int]:
    """``size`` in parts proportional to ``weights``, rounded by the largest remainders."""
    exact = [size * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: size - sum(parts)]:
        parts[index] += 1
    return parts


def _draw(key: str, mix: Mapping[str, Any], seed: int, count: int) -> Iterator[Problem]:
    import reasoning_gym

    own_seed = derive_seed(seed, key) % 2**31
    try:
        dataset = reasoning_gym.create_dataset(mix["name"], **mix["params"], seed=own_seed, size=count)
        for index in range(count):
            random.seed(own_seed + index)  # for the task that draws from the global generator
            yield _problem(key, mix, dataset[index])
    except Exception as error:  # a hundred generators, each with its own way to refuse its arguments
        raise DataError(f"{_name(key, mix)}: {error}") from error


def _problem(key: str, mix: Mapping[str, Any], entry: dict[str, Any]) -> Problem:
    question, answer = str(entry["question"]), entry["answer"]
    metadata = {"task": mix["name"], "params": mix["params"], "entry": pack(entry)}
    return Problem(question_id(key, question), question, "" if answer is None else str(answer), key, metadata)


def _name(key: str, mix: Mapping[str, Any]) -> str:
    return f"data.tasks.{key}: {mix['name']} with {mix['params']}"


if __name__ == "__main__":
    main()
