"""The processes of a run: start them or join those of torchrun or srun, and pass a stop on to all of them."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from p2o.config import ConfigError
from p2o.config.schema import Config, TrainerConfig
from p2o.errors import InputError, RunError
from p2o.messages import decode, encode
from p2o.ranks import PATIENCE_S, PeerLostError, Ranks
from p2o.stop import Stop

TENSORS_S = 600
"""Seconds after which a sum of tensors that some rank never joined is an error."""
LOOK_S = 0.1
"""Between two looks whether a rank was asked to stop."""
SHUTDOWN_S = 60
"""Seconds that the processes have to write their checkpoint once they are asked to stop."""
RUN = "P2O_RUN"
"""The environment variable through which a process hands its run to the ranks that it starts."""
_PR_SET_PDEATHSIG = 1
PASSED_ON = signal.SIGUSR2
"""What interrupts a rank when another one was asked to stop."""


def devices_per_node(trainer: TrainerConfig) -> int:
    """Processes per machine; ``trainer.devices=auto`` is a process per GPU, and one on a CPU."""
    if isinstance(trainer.devices, int):
        return trainer.devices
    return max(1, torch.cuda.device_count()) if trainer.accelerator == "gpu" else 1


def is_first_process() -> bool:
    """Whether this is the process that speaks for the run."""
    place = _started_by_others()
    return place is None or place[0] == 0


def must_start_ranks(trainer: TrainerConfig) -> bool:
    """Whether the run wants processes and nobody has started them."""
    return devices_per_node(trainer) > 1 and _started_by_others() is None


def start_ranks(config: Config, overrides: Sequence[str]) -> int:
    """Run ``python -m p2o.rank`` once per device of this machine by torch's elastic launcher; the exit code.

    A signal to this process reaches all of them.
    """
    trainer = config.trainer
    if trainer.nodes > 1:
        raise ConfigError(
            [f"trainer.nodes={trainer.nodes}: start the command on every machine by torchrun or srun (docs/scale.md)"]
        )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what a lost connection means, the run says itself
    os.environ[RUN] = encode((config, list(overrides))).decode()
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices_per_node(trainer),
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=1.0,  # longer than a rank needs to find that another one is gone, and to say so itself
        shutdown_timeout=SHUTDOWN_S,
    )
    try:
        elastic_launch(how, sys.executable)("-m", "p2o.rank")
    except ChildFailedError as failed:
        first = failed.failures.get(0) or failed.get_first_failure()[1]
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def run_of_rank() -> tuple[Config, list[str]]:
    """Configuration and overrides, as :func:`start_ranks` handed them to this process."""
    if sys.platform == "linux":  # a process that is killed cannot end what it has started
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    config, overrides = decode(os.environ.pop(RUN).encode())
    return config, overrides


@contextmanager
def joined(trainer: TrainerConfig, stop: Stop) -> Iterator[Ranks]:
    """The ranks of this run, started by torchrun, srun or :func:`start_ranks`; or this process alone.

    While the block runs, a stop of one rank reaches all. Raises :class:`ConfigError` if their number
    is not what ``trainer.devices`` and ``trainer.nodes`` say.
    """
    place = _started_by_others()
    if place is None and trainer.strategy == "ddp":
        yield Ranks()
        return
    rank, size, local_rank, local_size = place or _alone()
    if (size, local_size) != (devices_per_node(trainer) * trainer.nodes, devices_per_node(trainer)):
        raise ConfigError(
            [
                f"{size} processes were started, {local_size} on this machine, but trainer.devices={trainer.devices} "
                f"trainer.nodes={trainer.nodes}: give trainer.devices={local_size} trainer.nodes={size // local_size}"
            ]
        )
    if trainer.nodes == 1 and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo asks the host's name for its address
    on_gpu = trainer.accelerator == "gpu"
    if on_gpu:
        torch.cuda.set_device(local_rank)
    store, _, _ = next(dist.rendezvous("env://", rank, size))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("p2o", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TENSORS_S),
    )
    failed = False
    try:
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=trainer.wait_s))
        with _stops_passed_on(stop, store.clone()):
            yield Ranks(rank, size, local_rank=local_rank, local_size=local_size, control=control)
    except PeerLostError as lost:
        _hear(stop, store)
        stop.check()  # it is gone since it was asked to stop
        if (why := _why(store)) is not None:
            raise PeerLostError(why) from lost
        raise
    except Exception as error:
        told = isinstance(error, InputError | RunError)
        failed = True
        store.set("error", f"rank {rank}: {error if told else traceback.format_exc()}")
        raise
    finally:
        if failed:  # the others shall not wait for this rank, but read why it is gone
            dist.destroy_process_group()
        _leave(store, rank, size)
        if not failed:
            dist.destroy_process_group()


def cluster_environment() -> ClusterEnvironment | None:
    """What tells Lightning of the processes; None for an ordinary one."""
    if _started_by_others() is None:
        return None
    # Its requeueing would take the signals over; a run that is stopped continues by the same command.
    return TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)


def _started_by_others() -> tuple[int, int, int, int] | None:
    """Rank, size, local rank and local size as the environment has them; None for an ordinary process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ.get(name, -1)) for name in names)
        return rank, size, max(0, local_rank), local_size if local_size > 0 else size
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ.setdefault("MASTER_ADDR", slurm.main_address)
        os.environ.setdefault("MASTER_PORT", str(slurm.main_port))
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return slurm.global_rank(), slurm.world_size(), slurm.local_rank(), slurm.world_size() // nodes
    return None


def _alone() -> tuple[int, int, int, int]:
    """One process that shards its model with nobody: the same code as for many."""
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "0")
    return 0, 1, 0, 1


def _leave(store: dist.Store, rank: int, size: int) -> None:
    """Rank 0, with which the store may end, stays until the others have left, or one was killed."""
    deadline = time.monotonic() + PATIENCE_S
    with suppress(RuntimeError):  # the store is gone
        left = store.add("left", 1)
        while rank == 0 and left < size and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            left = store.add("left", 0)


def _hear(stop: Stop, store: dist.Store) -> None:
    """Ask for the stop that another rank was asked for, if there is one."""
    with suppress(RuntimeError):  # the store is gone, and with it the run
        if store.check(["stop"]):
            stop.ask(signal.Signals(int(store.get("stop"))))


def _why(store: dist.Store) -> str | None:
    """What a rank said that has failed by itself."""
    with suppress(RuntimeError):  # the store is gone, and with it the run
        return store.get("error").decode() if store.check(["error"]) else None
    return None


@contextmanager
def _stops_passed_on(stop: Stop, store: dist.Store) -> Iterator[None]:
    """A thread looks in the store whether another rank was asked to stop, and tells it of a stop of this one."""
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    done, heard = threading.Event(), Stop()
    heard.deferred = True

    def look() -> None:
        while not done.wait(LOOK_S) and not stop.asked:
            _hear(heard, store)
            if heard.asked:
                signal.pthread_kill(main.ident or 0, PASSED_ON)
                return
        if stop.by is not None:
            with suppress(RuntimeError):  # the store is gone, and with it the run
                store.set("stop", str(int(stop.by)))

    before = signal.signal(PASSED_ON, lambda *_: stop.ask(heard.by) if heard.by is not None else None)
    watcher = threading.Thread(target=look, name="stops", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(PASSED_ON, before)
