"""Grading in separate processes, each answer with a hard deadline: nothing that a model writes can stop a run."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from p2o.rewards.extract import METHODS, extract_answer
from p2o.rewards.process import WorkerProcess
from p2o.rewards.scorers import RewardError, load_function
from p2o.types import Grade, Outcome, Problem

if TYPE_CHECKING:
    from p2o.config.schema import RewardConfig

logger = logging.getLogger(__name__)

BATCH = 16
"""Most jobs in one message to a worker."""
REMEMBERED = 100_000
"""Grades that are kept for repeated answers."""

Key = tuple[str, str, str]
"""(problem id, gold, answer): jobs with the same key have the same grade."""


@dataclass(slots=True, eq=False)
class _Job:
    """An answer to grade; without an "answer" in its payload, a gold to check."""

    payload: dict[str, Any]
    key: Key | None = None
    future: Future[Grade] = field(default_factory=Future)
    fell: bool = False
    """A worker died of it once. The second time it is not the worker's fault."""


class GraderPool:
    """Grades answers in ``config.workers`` processes, killed and replaced when an answer overruns its deadline.

    Each process has a thread here that waits for it, so one hostile answer holds up nobody else.

    Outcomes: ``correct``; ``wrong``; ``unparseable`` (no answer was found, the scorer cannot read it or failed on it,
    or it took more than ``config.memory_mb``); ``timeout``. Only a configuration that cannot work raises
    :class:`~p2o.rewards.scorers.RewardError`, or :class:`~p2o.extensions.ExtensionError` for a function that is absent;
    no answer ever does.

    Rewards are 0 or 1, except with ``kind=function``: its score in [0, 1], correct at 1. In a reasoning-gym task only
    the full score counts, since most tasks give partial credit for nonsense.

    Answers are extracted by ``config.extract`` in the calling thread, in linear time. Equal answers to one problem are
    graded once and remembered. Timeouts are not, nor are a custom function's scores, which may be random.
    """

    def __init__(self, config: RewardConfig) -> None:
        unknown = [name for name in config.extract if name not in METHODS]
        if unknown or not config.extract:
            raise RewardError(f"reward.extract={config.extract}: give one or more of {', '.join(METHODS)}")
        if config.kind == "function":
            load_function(config.function)
        self._config = config
        self._lock = threading.Lock()
        self._closed = False
        self._queue: deque[_Job] = deque()
        self._known: dict[Key, Future[Grade] | Grade] = {}
        self._complaints: set[str] = set()
        self._processes: dict[int, WorkerProcess] = {}
        """Thread → the process that it keeps busy."""
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="p2o-grader")
        for _ in range(config.workers):
            self._threads.submit(self._process)  # starts now; if it cannot, the first answer says so

    def submit(self, problem: Problem, text: str) -> Future[Grade]:
        """Grade a response; returns at once. Callbacks of the future run in a thread of the pool."""
        answer = extract_answer(text, self._config.extract, mathematical=self._config.kind == "math")
        if answer is None:
            return _done(Grade(Outcome.UNPARSEABLE, 0.0))
        job = _Job({"answer": answer, "problem": self._needed(problem)})
        if self._config.kind == "function":
            return self._enqueue(job)
        job.key = (problem.id, problem.answer, answer)
        with self._lock:
            known = self._known.setdefault(job.key, job.future)
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
        if known is job.future:
            return self._enqueue(job)
        return _done(known) if isinstance(known, Grade) else known

    def grade_many(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """Grade responses and wait for all of them; in the order given."""
        return [future.result() for future in [self.submit(problem, text) for problem, text in answers]]

    def check_golds(self, problems: Sequence[Problem]) -> list[bool]:
        """For each problem, whether its gold is one that answers can be compared with."""
        futures = [self._enqueue(_Job({"problem": self._needed(problem)})) for problem in problems]
        return [future.result().outcome is Outcome.CORRECT for future in futures]

    def close(self) -> None:
        """Kill the workers and cancel what is not graded yet. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for process in self._processes.values():
                process.kill()
        self._threads.shutdown()
        for process in self._processes.values():
            process.discard()
        self._processes.clear()
        for job in self._queue:
            job.future.cancel()
            job.future.set_running_or_notify_cancel()
        self._queue.clear()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _needed(self, problem: Problem) -> dict[str, Any]:
        if self._config.kind == "function":
            return asdict(problem)
        if self._config.kind == "reasoning_gym":
            return {"answer": problem.answer, "metadata": problem.metadata}
        return {"answer": problem.answer}

    def _enqueue(self, job: _Job) -> Future[Grade]:
        self._queue.append(job)
        self._threads.submit(self._work)
        return job.future

    # what runs in the pool's threads

    def _work(self) -> None:
        """Grade what waits, one message at a time, until nothing is left."""
        while jobs := self._take():
            try:
                self._grade(self._process(), jobs)
            except RewardError as error:
                while jobs:
                    jobs.popleft().future.set_exception(error)
            except TimeoutError:
                self._discard()
                self.finish(jobs.popleft(), Outcome.TIMEOUT)
            except (OSError, EOFError):  # it died of the first job: workers answer in order
                self._discard()
                if jobs[0].fell:
                    self.finish(jobs.popleft(), Outcome.UNPARSEABLE, error="the worker died of it, twice")
                else:
                    jobs[0].fell = True
            if jobs:
                with self._lock:
                    self._queue.extendleft(reversed(jobs))
                with suppress(RuntimeError):  # the pool was closed
                    self._threads.submit(self._work)  # another thread need not wait for a new process

    def _take(self) -> deque[_Job]:
        """Jobs for one message; none if nothing waits or the pool is closed."""
        with self._lock:
            share = 0 if self._closed else min(BATCH, -(-len(self._queue) // self._config.workers))
            return deque(self._queue.popleft() for _ in range(share))

    def _grade(self, process: WorkerProcess, jobs: deque[_Job]) -> None:
        process.send([job.payload for job in jobs])
        while jobs:
            reply = process.receive(self._config.deadline_s)
            self.finish(jobs.popleft(), Outcome(reply["outcome"]), reply["reward"], reply.get("error"))

    def finish(self, job: _Job, outcome: Outcome, reward: float = 0.0, error: str | None = None) -> None:
        """Settle a job and remember its grade; a scorer's error is logged the first time."""
        grade = Grade(outcome, reward, job.payload.get("answer"))
        kind = (error or "").partition(":")[0]
        with self._lock:
            if job.key is not None and outcome is Outcome.TIMEOUT:
                self._known.pop(job.key, None)
            elif job.key is not None:
                self._known[job.key] = grade
            is_news = error is not None and kind not in self._complaints
            self._complaints.add(kind)
        if is_news:
            logger.warning("the %s scorer failed on an answer (counted unparseable): %s", self._config.kind, error)
        job.future.set_result(grade)

    def _process(self) -> WorkerProcess:
        """This thread's process, started if there is none. EOFError if the pool is closed."""
        thread, config = threading.get_ident(), self._config
        with self._lock:
            if self._closed:
                raise EOFError
            if thread in self._processes:
                return self._processes[thread]
            settings = {"kind": config.kind, "function": config.function, "memory_mb": config.memory_mb}
            process = self._processes[thread] = WorkerProcess(settings)
        try:
            process.wait_until_ready()
        except (OSError, EOFError, RuntimeError) as error:
            self._discard()
            raise RewardError(f"reward.kind={config.kind}: a grading process did not start: {error}") from error
        return process

    def _discard(self) -> None:
        with self._lock:
            process = self._processes.pop(threading.get_ident(), None)
        if process is not None:
            process.discard()


def _done(grade: Grade) -> Future[Grade]:
    future: Future[Grade] = Future()
    future.set_result(grade)
    return future
