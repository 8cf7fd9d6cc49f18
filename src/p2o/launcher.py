"""Hydra's multirun with every job in a process of its own.

Hydra's basic launcher runs all jobs of a sweep in one process, where engines, thread pools and log handlers of one job
leak into the next, and composes lazily, so an edited file changes jobs that are already queued. This one composes
every job first, runs ``jobs`` of them at a time, gives each its own log and GPU, continues when one fails, and writes
one ``results.csv``. A job that has ended is not run again, so a killed sweep continues by the same command; a folder
that holds the run of another configuration is a job that failed. Jobs end with the process that launched them.

On a CPU the processes are forked from a server that has imported the libraries and done nothing else, which saves each
job the seconds that its imports take. With a GPU every process imports for itself: CUDA does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from p2o.config import Config, load_config
from p2o.config.load import to_plain
from p2o.reporting.results import read_status, write_results
from p2o.run_folder import RunFolderError, read_configuration, refuse_another_run

LIBRARIES = "p2o.launch"
"""Importing it imports all that a job needs."""
ENDED = ("completed", "stopped")
"""Of a run that has nothing left to do: all its epochs are done, or its budget is spent."""


@dataclass
class ProcessLauncherConf:
    """``hydra/launcher=process``: how many jobs at a time, and which GPUs they take turns on."""

    _target_: str = "hydra_plugins.p2o.ProcessLauncher"
    """Hydra takes plugins from this package alone; :func:`register_launcher` says what the name stands for."""
    jobs: int = 2
    gpus: list[int] | None = None


def register_launcher() -> None:
    """Make ``hydra/launcher=process`` known to Hydra."""
    ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf)
    Plugins.instance().register(ProcessLauncher)
    Plugins.instance().class_name_to_class[ProcessLauncherConf._target_] = ProcessLauncher


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as composed when the sweep began; ``config`` is without Hydra's own part."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    environment: Mapping[str, str]

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def name(self) -> str:
        return f"#{self.number} {' '.join(self.overrides)}"


class ProcessLauncher(Launcher):
    """Runs each job in a process of its own."""

    def __init__(self, jobs: int, gpus: Sequence[int] | None) -> None:
        self.jobs = jobs
        self.gpus = gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; the returns of those that failed hold the reason, and Hydra exits with an error at the end."""
        jobs = [self._compose(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        if len({job.run_dir for job in jobs}) < len(jobs):
            raise ValueError("two jobs of the sweep share a run_dir: do not set run_dir in a sweep")
        if all(job.config.plan for job in jobs):
            from p2o.launch import plan_jobs  # heavy, and useless to a sweep that trains

            plan_jobs([(job.overrides, job.config) for job in jobs])
            return [_returned(job, None) for job in jobs]
        errors = self._run(jobs)
        table = Path(self.config.hydra.sweep.dir) / "results.csv"
        others = [number for number, error in errors.items() if isinstance(error, RunFolderError)]
        write_results([(job.run_dir, job.overrides) for job in jobs if job.number not in others], table)
        print(f"{len(jobs) - len(errors)} of {len(jobs)} jobs complete; {table}", flush=True)
        for job in jobs:
            if job.number in errors:
                print(f"failed: {job.name}\n  {errors[job.number]}", flush=True)
        return [_returned(job, errors.get(job.number)) for job in jobs]

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with read_write(config), open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            HydraConfig.instance().set_config(config)
            environment = dict(config.hydra.job.env_set)
            config.run_dir = str(config.run_dir)  # resolved while Hydra's part, which names it, is there
            del config["hydra"]
        return Job(number, tuple(filter_overrides(overrides)), config, environment)

    def _run(self, jobs: Sequence[Job]) -> dict[int, Exception]:
        """Run the jobs that have not ended yet; returns what went wrong, by the job's number."""
        errors: dict[int, Exception] = {}
        running: dict[int, tuple[Job, BaseProcess]] = {}

        def ended(job: Job, error: Exception | None = None) -> None:
            if error is not None:
                errors[job.number] = error
            print(f"{job.name}: {'complete' if error is None else f'failed ({error})'}", flush=True)

        def wait_for_one() -> None:
            wait([process.sentinel for _, process in running.values()])
            slot = next(slot for slot, (_, process) in running.items() if not process.is_alive())
            job, process = running.pop(slot)
            code, log_file = process.exitcode, job.run_dir / "launch.log"
            ended(job, RuntimeError(f"exit code {code}, see {log_file}") if code else None)

        for job in jobs:
            if len(running) == self.jobs:
                wait_for_one()
            slot = next(slot for slot in range(self.jobs) if slot not in running)
            try:
                process = self._start(job, slot)
            except Exception as error:
                ended(job, error)
            else:
                if process is None:
                    ended(job)
                else:
                    running[slot] = job, process
        while running:
            wait_for_one()
        return errors

    def _start(self, job: Job, slot: int) -> BaseProcess | None:
        """Start a job's process, whose output goes to ``launch.log``; None if the job has ended before."""
        config = load_config(job.config)
        if (status := read_status(job.run_dir)) is not None:
            refuse_another_run(job.run_dir, read_configuration(job.run_dir / "config.yaml"), to_plain(config))
        if status in ENDED:
            return None
        print(job.name, flush=True)
        devices = config.trainer.devices if isinstance(config.trainer.devices, int) else 1
        threads = config.trainer.threads or max(1, (os.cpu_count() or 1) // (self.jobs * devices))
        config = replace(config, trainer=replace(config.trainer, threads=threads))
        environment = {**job.environment, "OMP_NUM_THREADS": str(threads)}
        if self.gpus:
            own = [self.gpus[i % len(self.gpus)] for i in range(slot * devices, (slot + 1) * devices)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        job.run_dir.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([LIBRARIES] if config.trainer.accelerator == "cpu" else [])
        given = (config, job.overrides, environment, job.run_dir / "launch.log")
        process = context.Process(target=_job, args=given)
        process.start()
        return process


def _returned(job: Job, error: Exception | None) -> JobReturn:
    """What Hydra is told: it raises what a failed job returns, a line and exit code 1 instead of a traceback."""
    done = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=os.getcwd(), task_name="run")
    done.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    done.return_value = None if error is None else SystemExit(str(error))
    return done


def _job(config: Config, overrides: Sequence[str], environment: Mapping[str, str], log_file: Path) -> None:
    """What a job's process does; everything said goes to ``log_file``."""
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    os.environ.update(environment)
    with log_file.open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    from p2o.launch import launch

    launch(config, overrides)


def _die_with_launcher() -> None:
    """The process that forked this one outlives the launcher, so the kernel cannot be asked to see to it."""
    if (launcher := multiprocessing.parent_process()) is not None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGKILL)
