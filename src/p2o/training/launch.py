"""What the command does around a run: log, errors in one line, exit code."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from p2o.config.schema import Config
from p2o.evolution.reflectors import ReflectorError
from p2o.policy.builders import ModelError
from p2o.reporting.environment import log_to
from p2o.tasks import DataError
from p2o.training.checkpoint import CheckpointError
from p2o.training.fit import train
from p2o.training.run_folder import RunFolderError

log = logging.getLogger(__name__)

INPUT_ERRORS = (RunFolderError, CheckpointError, DataError, ModelError, ReflectorError)


def launch(config: Config) -> float | None:
    """Train and say how it ended; an input that cannot work is one clear message and exit code 2."""
    with log_to(Path(config.run_dir).expanduser() / "log.txt"):
        try:
            result = train(config)
        except INPUT_ERRORS as error:
            log.error("%s", error)
            sys.exit(2)
    if result.already_done:
        print(f"{result.run_dir} is complete: see summary.json there. For another run give another run_dir or seed.")
    return result.state.validation.final
