"""What the command does around a run: errors in one line, exit code."""

from __future__ import annotations

import sys

from p2o.config.schema import Config
from p2o.evolution.reflectors import ReflectorError
from p2o.policy.builders import ModelError
from p2o.policy.memory import OutOfMemoryError
from p2o.policy.nonfinite import NonFiniteError
from p2o.rewards import RewardError
from p2o.tasks import DataError
from p2o.training.checkpoint import CheckpointError
from p2o.training.fit import train
from p2o.training.run_folder import RunFolderError

INPUT_ERRORS = (RunFolderError, CheckpointError, DataError, ModelError, RewardError, ReflectorError)
STOPS = (NonFiniteError, OutOfMemoryError)
"""Faults that end a run; its last checkpoint stays, and the same command goes on from there."""


def launch(config: Config) -> float | None:
    """Train and say how it ended.

    An input that cannot work is one clear message and exit code 2, a fault that ends the run one and exit code 1.
    """
    try:
        result = train(config)
    except INPUT_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except STOPS as error:
        print("; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        sys.exit(1)
    if result.already_done:
        print(f"{result.run_dir} is complete: see summary.json there. For another run give another run_dir or seed.")
    return result.state.validation.final
