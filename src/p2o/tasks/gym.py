"""Procedural questions of reasoning-gym: a mixture of tasks, the same for the same ``data.seed``.

``generate`` makes them in a separate process, since they would not be the same otherwise: some tasks iterate over sets
of strings, whose order Python changes from process to process, and one draws from the global generator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from p2o.config.schema import ReasoningGymData
from p2o.tasks.problem_set import DataError, DataReport
from p2o.types import Problem


def load(data: ReasoningGymData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) questions: ``train_size`` and ``val_size`` distinct ones, each with the mixture's shares.

    Raises :class:`~p2o.tasks.DataError` for an unknown task, for arguments that it does not take, and if a task
    has too few distinct questions.
    """
    if not data.tasks or any(mix.weight <= 0 for mix in data.tasks.values()):
        raise DataError("data.tasks: give at least one data.tasks.<name>={name: chain_sum}, each weight above 0")
    if not data.train_size or not data.val_size:
        raise DataError("data=reasoning_gym has no number of questions: set data.train_size and data.val_size")
    made = make_questions(asdict(data))
    if "error" in made:
        raise DataError(made["error"])
    train, val = ([Problem(**problem) for problem in made[part]] for part in ("train", "val"))
    report.rows += len(train) + len(val)
    return train, val


def make_questions(data: Mapping[str, Any]) -> dict[str, Any]:
    """What :mod:`~p2o.tasks.generate` makes of the configuration's fields: the problems of each part, or the error."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.run(
        [sys.executable, "-m", "p2o.tasks.generate"],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if process.returncode != 0:
        raise DataError(f"data=reasoning_gym: making the questions failed\n{process.stderr[-2000:]}")
    return json.loads(process.stdout)
