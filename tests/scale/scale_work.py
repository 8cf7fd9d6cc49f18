"""What the ranks of a test do; a module of its own, since processes find it by name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from p2o.config.schema import TrainerConfig
from p2o.processes import joined
from p2o.ranks import DivergedError, PeerLostError, Ranks
from p2o.stop import Stop, Stopped


def _join(stop: Stop | None = None) -> Any:
    return joined(TrainerConfig(devices=2), stop or Stop())


def talk() -> dict[str, Any]:
    """Every kind of message once."""
    with _join() as ranks:
        tensors = [torch.full((3,), float(ranks.rank + 1)), torch.ones(2, dtype=torch.float64) * ranks.rank]
        ranks.sum(tensors)
        served: list[Any] = []

        def work() -> str:
            ranks.command({"do": "this"})
            ranks.command("and that")
            return "done"

        return {
            "gather": ranks.gather(lambda: ranks.rank * 10),
            "large": [len(each) for each in ranks.gather(lambda: "x" * (1 + 100_000 * ranks.rank))],
            "first": ranks.from_first(lambda: os.getpid()) == os.getpid(),
            "turns": ranks.in_turn(lambda: ranks.rank),
            "sum": [tensor.tolist() for tensor in tensors],
            "lead": ranks.lead(work, served.append),
            "served": served,
        }


def fail(where: str) -> list[str]:
    """What each kind of call raises if it fails on one rank, and that the ranks can talk afterwards."""
    with _join() as ranks:
        raised = []
        for failing in range(2):

            def make(failing: int = failing) -> int:
                if ranks.rank == failing:
                    raise FileNotFoundError(2, f"nothing on {failing}")
                return 1

            try:
                call(ranks, where, make)
            except FileNotFoundError as error:
                raised.append(str(error))
        assert ranks.gather(lambda: ranks.rank) == [0, 1]
        return raised


def call(ranks: Ranks, where: str, make: Any) -> Any:
    if where == "lead":
        return ranks.lead(lambda: (make() and ranks.command(0)) or ranks.gather(make), lambda _: ranks.gather(make))
    return getattr(ranks, where)(make)


def differ() -> str:
    with _join() as ranks:
        ranks.agree("same", "it")
        try:
            ranks.agree(str(ranks.rank), "the state")
        except DivergedError as error:
            return str(error)
        return "nothing raised"


def die(asked_to_stop: bool) -> str:
    """Rank 1 is killed while rank 0 waits for it."""
    stop = Stop()
    try:
        with _join(stop) as ranks:
            ranks.gather(lambda: 0)
            if ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            stop.deferred = True
            if asked_to_stop:
                stop.ask(signal.SIGTERM)
            ranks.gather(lambda: 0)
    except PeerLostError as error:
        return f"lost: {error}"
    except Stopped as stopped:
        return f"stopped: {stopped}"
    return "nothing raised"


def stopped_while(what: str, asked: int) -> str:
    """Rank ``asked`` gets SIGTERM; what each rank leaves with."""
    stop = Stop()
    try:
        with stop.on_signals(), _join(stop) as ranks:
            ranks.gather(lambda: 0)
            if ranks.rank == asked:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            if what == "lead":
                ranks.lead(lambda: time.sleep(600), lambda _: None)
            else:
                ranks.gather(lambda: time.sleep(600 if ranks.rank == 0 else 0))
    except Stopped as leaving:
        return str(leaving)
    return "nothing raised"
