"""Judge a model: ``python -m p2o.evaluate model=hub model.path=FOLDER benchmarks=[gsm8k] benchmarks.data_dir=DATA``."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from p2o.command import refuse, run_command
from p2o.config import ConfigError, EvaluateConfig, load_evaluation, register_schemas
from p2o.errors import InputError, RunError

register_schemas()

FILE_WIDTH = 120
"""Columns of the tables where the output is not a terminal."""


@hydra.main(version_base="1.3", config_path="pkg://p2o.conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Compose, check, judge. An input that cannot work is one clear message and exit code 2, a fault exit code 1."""
    try:
        config = load_evaluation(composed)
    except ConfigError as error:
        refuse(f"The configuration cannot run:\n{error}")
    # Heavy imports wait until the configuration is known to be good.
    from rich.console import Console

    from p2o.evaluation.judge import evaluate
    from p2o.evaluation.scores import RESULTS
    from p2o.evaluation.table import tables

    try:
        results = evaluate(config)
    except InputError as error:
        refuse(f"{type(error).__name__}: {error}")
    except RunError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print(f"stopped; the same command continues from what is in {config.run_dir}", file=sys.stderr)
        sys.exit(130)
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(*tables(results), f"{config.run_dir}/{RESULTS}", sep="\n")


if __name__ == "__main__":
    run_command(main, EvaluateConfig)
