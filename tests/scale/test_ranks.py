"""How ranks agree: values, errors, one that leads, stops, one that dies. Two processes over gloo."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import scale_work
from two import CONTEXT, environment, together

from p2o.ranks import ALONE, Ranks


def test_what_they_tell_each_other() -> None:
    first, second = together(scale_work.talk)
    for told in (first, second):
        assert told["gather"] == [0, 10]
        assert told["large"] == [1, 100_001]
        assert told["sum"] == [[3.0, 3.0, 3.0], [1.0, 1.0]]
        assert told["lead"] == "done"
    assert (first["first"], second["first"]) == (True, False)
    assert (first["turns"], second["turns"]) == (0, 1)
    assert (first["served"], second["served"]) == ([], [{"do": "this"}, "and that"])


@pytest.mark.parametrize("where", ["gather", "together", "in_turn", "lead"])
def test_an_error_on_one_is_raised_on_all(where: str) -> None:
    assert together(scale_work.fail, where) == [["[Errno 2] nothing on 0", "[Errno 2] nothing on 1"]] * 2


def test_unlike_values_are_refused_by_the_rank_that_differs() -> None:
    for said in together(scale_work.differ):
        assert said.startswith("the state of rank 1 is not that of rank 0")


@pytest.mark.parametrize("what", ["gather", "lead"])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_of_one_reaches_the_other_while_it_waits(what: str, asked: int) -> None:
    """The work would take ten minutes."""
    assert together(scale_work.stopped_while, what, asked) == ["SIGTERM", "SIGTERM"]


@pytest.mark.parametrize("asked_to_stop", [False, True])
def test_one_that_is_killed_is_missed(asked_to_stop: bool) -> None:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    variables = environment(2)
    processes = [CONTEXT.Process(target=_report, args=(each, theirs, asked_to_stop)) for each in variables]
    for process in processes:
        process.start()
    try:
        assert ours.poll(120)
        said = ours.recv()
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    assert processes[1].exitcode == -signal.SIGKILL
    assert said == "stopped: SIGTERM" if asked_to_stop else said.startswith("lost: another process of the run is gone")


def _report(variables: dict[str, str], end: multiprocessing.connection.Connection, asked_to_stop: bool) -> None:
    os.environ.update(variables)
    end.send(scale_work.die(asked_to_stop))


def test_one_process_needs_no_torch_distributed() -> None:
    assert ALONE.gather(lambda: 3) == [3]
    assert ALONE.from_first(lambda: 3) == ALONE.together(lambda: 3) == ALONE.in_turn(lambda: 3) == 3
    assert ALONE.lead(lambda: ALONE.command("nobody hears it"), print) is None
    ALONE.agree("x", "it")
    with pytest.raises(ZeroDivisionError):
        Ranks().gather(lambda: 1 / 0)
