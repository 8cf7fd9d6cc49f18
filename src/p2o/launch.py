"""What the command does around a run: errors in one line, exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from omegaconf import DictConfig

from p2o.config import ConfigError, load_config
from p2o.config.schema import Config
from p2o.errors import InputError, RunError
from p2o.files import no_room
from p2o.job import train
from p2o.logs import redact
from p2o.planning.plan import make_plan
from p2o.planning.plan_text import render, render_sweep, variants
from p2o.processes import is_first_process, must_start_ranks, start_ranks
from p2o.stop import Stop, Stopped


def launch(config: Config, overrides: Sequence[str] = ()) -> float | None:
    """Train and say how it ended; with ``debug=plan`` only say what it would take. ``overrides`` are the command's.

    An input that cannot work is one clear message and exit code 2, a fault that ends the run one and exit code 1; a
    signal ends it with 128 and the signal's number (143 for SIGTERM, 130 for Ctrl-C).
    """
    stop = Stop()
    try:
        if config.plan:
            print(render(make_plan(config)))
            return None
        if must_start_ranks(config.trainer):
            if (code := start_ranks(config, overrides)) != 0:
                sys.exit(code)
            return None
        with stop.on_signals():
            result = train(config, stop, overrides)
    except InputError as error:
        _exit(2, f"{type(error).__name__}: {error}")
    except RunError as error:
        _exit(1, "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
    except Stopped as stopped:
        _exit(stopped.exit_code, f"Stopped by {stopped}. The same command continues from the last checkpoint.")
    except Exception as error:
        full = no_room(error)
        if full is None and is_first_process():
            raise
        if full is None:
            _exit(1, "")
        _exit(
            1,
            f"No room to write {full.filename or 'to the disk'} ({full.strerror}), in {config.run_dir}. The last "
            "checkpoint is whole: make room and give the same command, and the run continues from there.",
        )
    if result.already_done and is_first_process():
        print(f"{result.run_dir} is complete: see summary.json there. For another run give another run_dir or seed.")
    return result.state.validation.final


def plan_jobs(jobs: Sequence[tuple[Sequence[str], DictConfig]]) -> None:
    """Say what a sweep would take. ``jobs`` are (overrides, composed configuration).

    A job that could not run is told of beside the plans of the others; exit code 2 then.
    """
    plans, faults, configs = {}, [], []
    for overrides, composed in jobs:
        try:
            configs.append((overrides, load_config(composed)))
        except ConfigError as error:
            faults.append(f"{' '.join(overrides)}: the configuration cannot run:\n{error}")
    for name, runs in variants(configs).items():
        print(f"planning {name}", flush=True)
        try:
            plans[name] = len(runs), make_plan(runs[0])
        except InputError as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    if plans:
        print(render_sweep(plans), flush=True)
    if faults:
        _exit(2, "\n".join(faults))


def _exit(code: int, message: str) -> NoReturn:
    if is_first_process():
        print(redact(message), file=sys.stderr)
    sys.exit(code)
