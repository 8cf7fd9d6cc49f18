"""Hydra's multirun with every job in a process of its own.

Hydra's basic launcher runs all jobs of a sweep in one process, where engines, thread pools and log handlers of one job
leak into the next, and composes lazily, so an edited file changes jobs that are already queued. This one composes
every job first, runs ``jobs`` of them at a time where memory allows, gives each its own log and GPU, continues when one
fails, and writes one ``results.csv``. A job that has ended is not run again, so a killed sweep continues by the same
command; a folder that holds the run of another configuration is a job that failed. Jobs end with the process that
launched them.

On a CPU the processes are forked from a server that has imported the libraries and done nothing else, which saves each
job the seconds that its imports take. With a GPU every process imports for itself: CUDA does not survive a fork.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
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
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from p2o.config.identity import differences
from p2o.reporting.results import read_status, write_results
from p2o.run_folder import read_configuration

LIBRARIES = "p2o.launch"
"""Importing it imports all that a job needs."""
POLL_S = 2.0
"""Between two looks at the memory that is free."""
ENDED = ("completed", "stopped")
"""Of a run that has nothing left to do: all its epochs are done, or its budget is spent."""

log = logging.getLogger(__name__)


@dataclass
class ProcessLauncherConf:
    """``hydra/launcher=process``: how many jobs at a time, and which GPUs they take turns on."""

    _target_: str = "hydra_plugins.p2o.ProcessLauncher"
    """Hydra takes plugins from this package alone; :func:`register_launcher` says what the name stands for."""
    jobs: int = 2
    gpus: list[int] | None = None
    memory_gib: float = 4.0
    """A job waits for this much free memory while others run."""


def register_launcher() -> None:
    """Make ``hydra/launcher=process`` known to Hydra."""
    ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf)
    Plugins.instance().register(ProcessLauncher)
    Plugins.instance().class_name_to_class[ProcessLauncherConf._target_] = ProcessLauncher


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides, as composed when the sweep began, and its folder."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    run_dir: Path


class ProcessLauncher(Launcher):
    """Runs ``python -m p2o.run`` once a job, each time in a process of its own."""

    def __init__(self, jobs: int, gpus: Sequence[int] | None, memory_gib: float) -> None:
        self.jobs = jobs
        self.gpus = gpus
        self.memory_gib = memory_gib
        self._running = 0
        self._changed = threading.Condition()
        """Guards ``_running``; jobs start one at a time."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; the returns of those that failed hold the reason, and Hydra exits with an error at the end."""
        jobs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        if len({job.run_dir for job in jobs}) < len(jobs):
            raise ValueError("two jobs of the sweep share a run_dir: do not set run_dir in a sweep")
        if all(job.config.plan for job in jobs):
            return self._plan(jobs)
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
        counted = [(job.run_dir, filter_overrides(job.overrides)) for job in jobs if not _other_run(job)]
        write_results(counted, table)
        failed = [(job, done) for job, done in zip(jobs, returns, strict=True) if done.status is JobStatus.FAILED]
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs complete; {table}", flush=True)
        for job, done in failed:
            print(f"failed: {' '.join(job.overrides)}\n  {done._return_value}", flush=True)
        return returns

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        return Job(number, tuple(overrides), config, Path(config.run_dir))

    def _plan(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """``debug=plan``: the jobs are planned here, told as one table, and leave no folder."""
        from p2o.launch import plan_jobs  # heavy, and useless to a sweep that trains

        plan_jobs([(filter_overrides(job.overrides), _own(job)) for job in jobs])
        return [_returned(job) for job in jobs]

    def _run(self, job: Job, slot: int) -> JobReturn:
        """Run one job, or find that it has ended before. Whatever goes wrong is told in what it returns."""
        started = time.monotonic()
        name = " ".join(filter_overrides(job.overrides))
        done = _returned(job)
        try:
            if differing := _other_run(job):
                raise RuntimeError(f"{job.run_dir} holds a run of another configuration: {'; '.join(differing)}")
            if read_status(job.run_dir) not in ENDED:
                print(f"#{job.number} {name}", flush=True)
                if (code := self._spawn(job, slot)) != 0:
                    raise RuntimeError(f"exit code {code}, see {job.run_dir / 'launch.log'}")
        except Exception as error:
            # Hydra raises what a failed job returns: a line and exit code 1, not a traceback through Hydra.
            done.status, done.return_value = JobStatus.FAILED, SystemExit(str(error))
            print(f"#{job.number} {name}: failed ({error})", flush=True)
            return done
        print(f"#{job.number} {name}: complete ({time.monotonic() - started:.0f} s)", flush=True)
        return done

    def _spawn(self, job: Job, slot: int) -> int | None:
        """The exit code of one job's process; its output goes to ``launch.log``."""
        flags = get_args_parser().parse_args(sys.argv[1:])
        threads = job.config.trainer.threads or max(1, (os.cpu_count() or 1) // self.jobs)
        # A sweep's file says MULTIRUN, and the job is composed from that file again.
        run_dir = str(job.run_dir).replace("'", "\\'")  # quoted: folders are named by overrides, and hold = signs
        arguments = [*job.overrides, f"run_dir='{run_dir}'", f"trainer.threads={threads}", "hydra.mode=RUN"]
        for option, value in (("--config-dir", flags.config_dir), ("--config-name", flags.config_name)):
            if value is not None:
                arguments += [option, value]
        environment = {"OMP_NUM_THREADS": str(threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpus[slot % len(self.gpus)])
        job.run_dir.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([LIBRARIES] if job.config.trainer.accelerator == "cpu" else [])
        process = context.Process(target=_job, args=(arguments, environment, job.run_dir / "launch.log"))
        with self._changed:
            while self._running and available_gib() < self.memory_gib:
                self._changed.wait(POLL_S)
            process.start()
            self._running += 1
        try:
            process.join()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
        return process.exitcode


def _returned(job: Job) -> JobReturn:
    """What Hydra is told of a job that has come to its end without an error."""
    done = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=os.getcwd(), task_name="run")
    done.status, done.return_value = JobStatus.COMPLETED, None
    return done


def _other_run(job: Job) -> list[str]:
    """The keys, with both values, by which the run in the job's folder is not the job's; none if none has begun."""
    if read_status(job.run_dir) is None:
        return []
    asked_for = OmegaConf.to_container(_own(job), resolve=True)
    assert isinstance(asked_for, dict)
    return differences(read_configuration(job.run_dir / "config.yaml"), {str(k): v for k, v in asked_for.items()})


def _own(job: Job) -> DictConfig:
    """A job's configuration without Hydra's, of which only the folder's name is needed."""
    config = job.config.copy()
    with read_write(config), open_dict(config):
        config.run_dir = str(job.run_dir)
        del config["hydra"]
    return config


def available_gib() -> float:
    """Memory that a new process can have, as Linux estimates it; elsewhere no limit is known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    kib = {name: value.split()[0] for name, value in (line.split(":") for line in lines)}
    return int(kib["MemAvailable"]) / 2**20


def _job(arguments: Sequence[str], environment: Mapping[str, str], log_file: Path) -> None:
    """What a job's process does: ``python -m p2o.run`` with these arguments, everything said going to ``log_file``."""
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    os.environ.update(environment)
    with log_file.open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv = ["p2o.run", *arguments]
    runpy.run_module("p2o.run", run_name="__main__", alter_sys=True)


def _die_with_launcher() -> None:
    """The process that forked this one outlives the launcher, so the kernel cannot be asked to see to it."""
    if (launcher := multiprocessing.parent_process()) is not None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGKILL)
