"""Hydra's multirun with every job in a process of its own.

Hydra's basic launcher runs all jobs of a sweep in one process, where engines, thread pools and log handlers of one job
leak into the next, and composes lazily, so an edited file changes jobs that are already queued. This one composes
every job first, runs ``jobs`` of them at a time, gives each its own log and GPU, goes on when one fails, and writes
one ``results.csv``. A job that is complete is not run again, so a killed sweep continues by the same command.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from p2o.reporting.results import read_status, write_results

log = logging.getLogger(__name__)


@dataclass
class ProcessLauncherConf:
    """``hydra/launcher=process``: how many jobs at a time, and which GPUs they take turns on."""

    _target_: str = "p2o.config.launcher.ProcessLauncher"
    jobs: int = 1
    gpus: list[int] | None = None


def register_launcher() -> None:
    """Make ``hydra/launcher=process`` known to Hydra."""
    ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf)
    Plugins.instance().register(ProcessLauncher)


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides, as composed when the sweep began, and its folder."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    run_dir: Path


class ProcessLauncher(Launcher):
    """Runs ``python -m p2o.run`` once a job."""

    def __init__(self, jobs: int = 1, gpus: Sequence[int] | None = None) -> None:
        self.jobs = jobs
        self.gpus = gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; the returns of those that failed hold the reason, and Hydra exits with an error at the end."""
        jobs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        if len({job.run_dir for job in jobs}) < len(jobs):
            raise ValueError("two jobs of the sweep share a run_dir: do not set run_dir in a sweep")
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.jobs):
            slots.put(slot)

        def run(job: Job) -> JobReturn:
            slot = slots.get()
            try:
                return self._run(job, slot)
            finally:
                slots.put(slot)

        with ThreadPoolExecutor(self.jobs) as pool:
            returns = list(pool.map(run, jobs))
        table = Path(self.config.hydra.sweep.dir) / "results.csv"
        write_results([job.run_dir for job in jobs], table)
        failed = [job for job, done in zip(jobs, returns, strict=True) if done.status is JobStatus.FAILED]
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs complete; {table}", flush=True)
        for job in failed:
            print(f"failed: {' '.join(job.overrides)}\n  see {job.run_dir / 'launch.log'}", flush=True)
        return returns

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        return Job(number, tuple(overrides), config, Path(config.run_dir))

    def _run(self, job: Job, slot: int) -> JobReturn:
        started = time.monotonic()
        name = " ".join(filter_overrides(job.overrides))
        done = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=os.getcwd(), task_name="run")
        if read_status(job.run_dir) != "completed":
            print(f"#{job.number} {name}", flush=True)
            code = self._spawn(job, slot)
            if code != 0:
                done.status = JobStatus.FAILED
                done.return_value = RuntimeError(f"exit code {code}, see {job.run_dir / 'launch.log'}")
                return done
        print(f"#{job.number} {name}: complete ({time.monotonic() - started:.0f} s)", flush=True)
        done.status = JobStatus.COMPLETED
        done.return_value = None
        return done

    def _spawn(self, job: Job, slot: int) -> int:
        """The exit code of one job's process; its output goes to ``launch.log``."""
        flags = get_args_parser().parse_args(sys.argv[1:])
        command = [sys.executable, "-m", "p2o.run", *job.overrides, f"run_dir={job.run_dir}"]
        for option, value in (("--config-dir", flags.config_dir), ("--config-name", flags.config_name)):
            if value is not None:
                command += [option, value]
        environment = dict(os.environ)
        threads = job.config.trainer.threads or max(1, (os.cpu_count() or 1) // self.jobs)
        environment["OMP_NUM_THREADS"] = str(threads)
        command.append(f"trainer.threads={threads}")
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpus[slot % len(self.gpus)])
        job.run_dir.mkdir(parents=True, exist_ok=True)
        with (job.run_dir / "launch.log").open("ab") as output:
            return subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
            ).returncode
