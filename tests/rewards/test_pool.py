from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from p2o.config.schema import RewardConfig
from p2o.extensions import ExtensionError
from p2o.rewards import GraderPool, RewardError
from p2o.rewards.pool import _Job
from p2o.rewards.process import WorkerProcess
from p2o.types import Grade, Outcome, Problem

FORMS = ["boxed", "answer_line", "last_number"]
PATIENCE_S = 60.0
"""For what takes a fraction of a second, unless it never comes."""


def problem(answer: str, id: str = "p") -> Problem:
    return Problem(id, "question", answer)


def function_config(name: str, **changes: object) -> RewardConfig:
    settings = {"kind": "function", "function": f"reward_functions.{name}", "extract": ["whole"]}
    return RewardConfig(**{**settings, "deadline_s": PATIENCE_S, **changes})


def children(of: int) -> list[int]:
    """Processes of this machine whose parent is ``of``."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile
            continue
        if parent == of:
            found.append(int(status.parent.name))
    return found


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"it did not come true within {PATIENCE_S:.0f} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(RewardConfig(kind="math", workers=2, extract=FORMS, deadline_s=PATIENCE_S)) as pool:
        yield pool


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[GraderPool]:
    with GraderPool(function_config("misbehave", memory_mb=512)) as pool:
        yield pool


def test_grades_in_order(pool: GraderPool) -> None:
    answers = [(problem(str(i), f"p{i}"), rf"so \boxed{{{i if i % 3 else -1}}}") for i in range(200)]
    grades = pool.grade_many(answers)
    assert [grade.extracted for grade in grades] == [str(i if i % 3 else -1) for i in range(200)]
    assert [grade.outcome is Outcome.CORRECT for grade in grades] == [bool(i % 3) for i in range(200)]
    assert [grade.reward for grade in grades] == [float(bool(i % 3)) for i in range(200)]


def test_outcomes_apart(pool: GraderPool) -> None:
    gold = problem("x + 1")
    texts = [r"\boxed{1 + x}", r"\boxed{x - 1}", "I give up", r"\boxed{)(}"]
    outcomes = [grade.outcome for grade in pool.grade_many([(gold, text) for text in texts])]
    assert outcomes == [Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.UNPARSEABLE]


def test_an_answer_that_comes_again_is_remembered(pool: GraderPool) -> None:
    gold = problem(r"\frac{x^2 - 1}{x - 1}", "remembered")
    first = pool.submit(gold, r"\boxed{x + 1}").result()
    again = pool.submit(gold, r"no, wait. \boxed{x + 1}")
    assert again.done()
    assert again.result() == first == Grade(Outcome.CORRECT, 1.0, "x + 1")


def test_equal_answers_under_way_are_graded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RewardConfig(kind="math", extract=FORMS, deadline_s=PATIENCE_S)
    all_there, take = threading.Event(), GraderPool._take

    def take_late(pool: GraderPool) -> deque[_Job]:
        all_there.wait(PATIENCE_S)
        return take(pool)

    monkeypatch.setattr(GraderPool, "_take", take_late)
    with GraderPool(config) as fresh:
        futures = [fresh.submit(problem(r"\sqrt{x^2+1}"), r"\boxed{(1+x^2)^{1/2}}") for _ in range(50)]
        assert len(fresh._queue) == 1
        all_there.set()
        assert {future.result().outcome for future in futures} == {Outcome.CORRECT}


def test_golds(pool: GraderPool) -> None:
    golds = ["5", r"\frac{1}{2}", "", r"\frac{1}{", r"\text{east}"]
    assert pool.check_golds([problem(gold, gold) for gold in golds]) == [True, True, False, False, True]


def test_exact_ignores_case_space_and_quotes() -> None:
    with GraderPool(RewardConfig(kind="exact", extract=["answer_line", "whole"])) as exact:
        gold = problem("Red, green")
        texts = ["Answer: red,  GREEN.", '"Red, green"', "Answer: green, red", "   "]
        outcomes = [grade.outcome for grade in exact.grade_many([(gold, text) for text in texts])]
        assert outcomes == [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE]
        assert exact.check_golds([gold, problem(" ")]) == [True, False]


def test_a_function_gets_the_whole_text_and_the_problem() -> None:
    with GraderPool(function_config("length")) as graded:
        grades = graded.grade_many([(problem("10"), "12345"), (problem("6"), "12345\n"), (problem("5"), " ")])
        assert grades[:2] == [Grade(Outcome.WRONG, 0.5, "12345"), Grade(Outcome.CORRECT, 1.0, "12345\n")]
        assert grades[2] == Grade(Outcome.UNPARSEABLE, 0.0)
        assert graded.check_golds([problem("10")]) == [True]


def test_a_function_gets_what_is_extracted() -> None:
    with GraderPool(function_config("length", extract=["boxed", "last_number"])) as graded:
        texts = [r"It is 7, so \boxed{12}.", "so it is 123", "I give up"]
        grades = graded.grade_many([(problem("2"), text) for text in texts])
    assert grades == [
        Grade(Outcome.CORRECT, 1.0, "12"),
        Grade(Outcome.CORRECT, 1.0, "123"),
        Grade(Outcome.UNPARSEABLE, 0.0),
    ]


def test_workers_never_import_torch() -> None:
    with GraderPool(function_config("heavy_modules")) as graded:
        assert graded.submit(problem("1"), "x").result().reward == 0.0
    program = (
        "import sys; from p2o.rewards import worker, scorers\n"
        "for kind in ('math', 'exact', 'reasoning_gym'): scorers.build_scorer(kind)\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lightning', 'omegaconf')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_overrun_is_a_timeout_and_nobody_else_waits() -> None:
    """Who waited for an answer's end would wait for longer than this test may take."""
    texts = ["fine", "sleep 3600", "fine too", "sleep 3600 again", "fine"]
    with GraderPool(function_config("misbehave", deadline_s=2.0)) as graded:
        grades = graded.grade_many([(problem("1"), text) for text in texts])
    assert [grade.outcome for grade in grades] == [
        Outcome.CORRECT,
        Outcome.TIMEOUT,
        Outcome.CORRECT,
        Outcome.TIMEOUT,
        Outcome.CORRECT,
    ]
    assert grades[1] == Grade(Outcome.TIMEOUT, 0.0, "sleep 3600")


@pytest.mark.parametrize("text", ["die", "allocate", "raise", "recurse", "out of range", "not a number"])
def test_a_failing_scorer_is_unparseable(misbehaving: GraderPool, text: str) -> None:
    grades = misbehaving.grade_many([(problem("1"), text) for text in ("before", text, "after")])
    assert [grade.outcome for grade in grades] == [Outcome.CORRECT, Outcome.UNPARSEABLE, Outcome.CORRECT]


def test_a_failing_scorer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with GraderPool(function_config("misbehave")) as graded, caplog.at_level(logging.WARNING, logger="p2o"):
        graded.grade_many([(problem("1"), "raise")] * 20)
    assert [record.getMessage() for record in caplog.records] == [
        "the function scorer failed on an answer (counted unparseable): RuntimeError: on purpose"
    ]


def test_printing_does_not_disturb_the_protocol(misbehaving: GraderPool, capfd: pytest.CaptureFixture[str]) -> None:
    assert misbehaving.submit(problem("1"), "print").result().outcome is Outcome.CORRECT
    assert capfd.readouterr() == ("", "")


def test_closing_leaves_no_process_thread_or_file_and_cancels_the_rest() -> None:
    files, threads, processes = len(os.listdir("/proc/self/fd")), threading.active_count(), set(children(os.getpid()))
    graded = GraderPool(function_config("misbehave", workers=2))
    futures = [graded.submit(problem("1"), "sleep 3600") for _ in range(40)]
    until(lambda: len(set(children(os.getpid())) - processes) == 2)
    graded.close()  # who waited for the answers would wait for longer than this test may take
    graded.close()
    assert all(future.cancelled() for future in futures)
    assert wait(futures, timeout=PATIENCE_S).not_done == set()
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads
    assert set(children(os.getpid())) == processes
    with pytest.raises(RuntimeError, match="shutdown"):
        graded.submit(problem("1"), "late")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice of a parent's death is Linux's")
def test_workers_die_with_a_parent_that_is_killed() -> None:
    program = """if True:
        import time
        from p2o.config.schema import RewardConfig
        from p2o.rewards import GraderPool
        from p2o.types import Problem

        function, problem = "reward_functions.misbehave", Problem("p", "", "1")
        pool = GraderPool(RewardConfig(kind="function", function=function, deadline_s=3600.0, workers=2))
        pool.grade_many([(problem, "fine")] * 8)
        [pool.submit(problem, "sleep 3600") for _ in range(4)]
        print("ready", flush=True)
        time.sleep(3600)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    until(lambda: len(children(parent.pid)) == 2)
    workers = children(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: not any(_alive(worker) for worker in workers))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_ends_when_its_parent_hangs_up() -> None:
    process = WorkerProcess({"kind": "exact", "function": None, "memory_mb": 512})
    process.wait_until_ready()
    process._connection.close()
    assert process._process.wait(timeout=20.0) == 0


def test_workers_that_cannot_start_are_an_error_of_the_first_answer() -> None:
    said = r"reward\.kind=magic: a grading process did not start: KeyError: 'magic'"
    with GraderPool(RewardConfig(kind="magic", workers=2)) as graded, pytest.raises(RewardError, match=said):
        graded.submit(problem("1"), r"\boxed{1}").result()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract": ["boxed", "guess"]}, "reward.extract"),
        ({"extract": []}, "reward.extract"),
        ({"kind": "function"}, "reward.function=None"),
        ({"kind": "function", "function": "length"}, "reward.function=length"),
        ({"kind": "function", "function": "no.such.module"}, "reward.function=no.such.module"),
        ({"kind": "function", "function": "reward_functions.absent"}, "absent"),
        ({"kind": "function", "function": "reward_functions.NOT_CALLABLE"}, "not a function"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises((RewardError, ExtensionError), match=message):
        GraderPool(RewardConfig(**changes))
