"""Grading in processes of its own, each answer with a hard deadline: nothing that a model writes can stop a run."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
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
"""Grades that are kept for answers that come again."""
_PACKAGES = {"math": "math_verify", "reasoning_gym": "reasoning_gym", "exact": "json", "function": "json"}


@dataclass(slots=True)
class _Job:
    """An answer to grade; without an "answer" in its payload, a gold to check."""

    payload: dict[str, Any]
    extracted: str | None = None
    key: tuple[str, ...] | None = None
    """What makes two jobs the same; None = nothing does."""
    futures: list[Future[Grade]] = field(default_factory=list)
    fell: bool = False
    """A worker died of it once. The second time it is not the worker's fault."""


class GraderPool:
    """Grades answers in ``config.workers`` processes, killed and replaced when an answer overruns its deadline.

    Outcomes: ``correct``; ``wrong``; ``unparseable`` (no answer was found, the scorer cannot read it or failed on it,
    or it took more than ``config.memory_mb``); ``timeout``. Only a configuration that cannot work raises
    :class:`~p2o.rewards.scorers.RewardError`, or :class:`~p2o.extensions.ExtensionError` for a function that is absent;
    no answer ever does.

    Rewards are 0 or 1, except that of ``kind=function``: its score in [0, 1], correct from 1 on. Of a reasoning-gym
    task only the full score counts, since most of them give partial credit for nonsense.

    Answers are extracted by ``config.extract`` in the calling thread, in linear time. Equal answers to one problem are
    graded once and remembered, timeouts excepted, and those that a function of one's own scores: it may draw lots.
    """

    def __init__(self, config: RewardConfig) -> None:
        _check(config)
        self._config = config
        self._queue: deque[_Job] = deque()
        self._pending: dict[tuple[str, ...], _Job] = {}
        self._grades: OrderedDict[tuple[str, ...], Grade] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._complaints: set[str] = set()
        self._workers = [_Worker(self, config) for _ in range(config.workers)]
        for worker in self._workers:
            worker.start()

    def submit(self, problem: Problem, text: str) -> Future[Grade]:
        """Grade a response; returns at once. Callbacks of the future run in a thread of the pool."""
        answer = extract_answer(text, self._config.extract, mathematical=self._config.kind == "math")
        if answer is None:
            future: Future[Grade] = Future()
            future.set_result(Grade(Outcome.UNPARSEABLE, 0.0))
            return future
        payload = {"answer": answer, "problem": self._needed(problem)}
        key = None if self._config.kind == "function" else (problem.id, problem.answer, answer)
        return self._enqueue(_Job(payload, answer, key))

    def grade_many(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """Grade responses and wait for all of them; in the order given."""
        return [future.result() for future in [self.submit(problem, text) for problem, text in answers]]

    def check_golds(self, problems: Sequence[Problem]) -> list[bool]:
        """For each problem, whether its gold is one that answers can be compared with."""
        futures = [self._enqueue(_Job({"problem": self._needed(problem)})) for problem in problems]
        return [future.result().outcome is Outcome.CORRECT for future in futures]

    def close(self) -> None:
        """Kill the workers and cancel what is not graded yet. Idempotent."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, deque()
            self._changed.notify_all()
        self._cancel(waiting)
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

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
        future: Future[Grade] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the grader pool is closed")
            if job.key is not None and job.key in self._grades:
                self._grades.move_to_end(job.key)
                future.set_result(self._grades[job.key])
            elif job.key is not None and job.key in self._pending:
                self._pending[job.key].futures.append(future)
            else:
                job.futures.append(future)
                if job.key is not None:
                    self._pending[job.key] = job
                self._queue.append(job)
                self._changed.notify()
        return future

    # what the workers call

    def take(self) -> list[_Job]:
        """Jobs for one message, as soon as there are any; none once the pool is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            share = min(BATCH, -(-len(self._queue) // len(self._workers)))
            return [self._queue.popleft() for _ in range(share)]

    def put_back(self, jobs: Sequence[_Job]) -> None:
        """Jobs that were taken and not graded, first in the queue again."""
        with self._changed:
            if not self._closed:
                self._queue.extendleft(reversed(jobs))
                self._changed.notify_all()
                return
        self._cancel(jobs)

    def finish(self, job: _Job, outcome: Outcome, reward: float = 0.0, error: str | None = None) -> None:
        """The verdict on a job, with what the scorer complained of."""
        grade = Grade(outcome, reward, job.extracted)
        with self._changed:
            if job.key is not None:
                del self._pending[job.key]
                if outcome is not Outcome.TIMEOUT:
                    self._grades[job.key] = grade
                    if len(self._grades) > REMEMBERED:
                        self._grades.popitem(last=False)
            is_news = error is not None and error.partition(":")[0] not in self._complaints
            if error is not None:
                self._complaints.add(error.partition(":")[0])
        if is_news:
            logger.warning("the %s scorer failed on an answer (counted unparseable): %s", self._config.kind, error)
        for future in job.futures:
            if future.set_running_or_notify_cancel():
                future.set_result(grade)

    def fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        """No worker can be had for these jobs."""
        with self._changed:
            for job in jobs:
                if job.key is not None:
                    del self._pending[job.key]
        for future in (future for job in jobs for future in job.futures):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    @staticmethod
    def _cancel(jobs: Sequence[_Job] | deque[_Job]) -> None:
        for future in (future for job in jobs for future in job.futures):
            future.cancel()
            future.set_running_or_notify_cancel()


class _Worker(threading.Thread):
    """Keeps one process busy, and replaces it whenever it hangs or dies."""

    def __init__(self, pool: GraderPool, config: RewardConfig) -> None:
        super().__init__(name="p2o-grader", daemon=True)
        self._pool = pool
        self._deadline = config.deadline_s
        self._settings = {"kind": config.kind, "function": config.function, "memory_mb": config.memory_mb}
        self._process: WorkerProcess | None = None
        self._stopped = False

    def run(self) -> None:
        with suppress(RewardError):  # comes again, and is told, with the first job
            self._start()
        while jobs := self._pool.take():
            try:
                process = self._process or self._start()
            except RewardError as error:
                self._pool.fail(jobs, error)
            else:
                self._grade(process, deque(jobs))
        self._discard()

    def stop(self) -> None:
        """Called by the pool's owner: end whatever the process does now."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _grade(self, process: WorkerProcess, jobs: deque[_Job]) -> None:
        try:
            process.send([job.payload for job in jobs])
            while jobs:
                reply = process.receive(self._deadline)
                self._pool.finish(jobs.popleft(), Outcome(reply["outcome"]), reply["reward"], reply.get("error"))
            return
        except TimeoutError:
            self._discard()
            self._pool.finish(jobs.popleft(), Outcome.TIMEOUT)
        except (OSError, EOFError):  # it crashed or ran out of memory; workers answer in order, so it was the first job
            self._discard()
            if jobs[0].fell:
                self._pool.finish(jobs.popleft(), Outcome.UNPARSEABLE, error="the worker died of it, twice")
            elif not self._stopped:
                jobs[0].fell = True
        self._pool.put_back(jobs)

    def _start(self) -> WorkerProcess:
        process = self._process = WorkerProcess(self._settings)
        try:
            process.wait_until_ready()
        except (OSError, EOFError, TimeoutError, RuntimeError) as error:
            self._discard()
            kind = self._settings["kind"]
            raise RewardError(f"reward.kind={kind}: a grading process did not start: {error}") from error
        return process

    def _discard(self) -> None:
        if self._process is not None:
            self._process.discard()
            self._process = None


def is_parseable_gold(answer: str, config: RewardConfig) -> bool:
    """Whether answers can be compared with this gold. For many, :meth:`GraderPool.check_golds` shares one pool."""
    with GraderPool(config) as pool:
        return pool.check_golds([Problem("gold", "", answer)])[0]


def _check(config: RewardConfig) -> None:
    if config.kind not in _PACKAGES:
        raise RewardError(f"reward.kind={config.kind}: choose one of {', '.join(_PACKAGES)}")
    if importlib.util.find_spec(_PACKAGES[config.kind]) is None:
        raise RewardError(f"reward.kind={config.kind} needs the package {_PACKAGES[config.kind]}: install it")
    unknown = [name for name in config.extract if name not in METHODS]
    if unknown or not config.extract:
        raise RewardError(f"reward.extract={config.extract}: give one or more of {', '.join(METHODS)}")
    for name in ("workers", "deadline_s", "memory_mb"):
        if getattr(config, name) <= 0:
            raise RewardError(f"reward.{name}={getattr(config, name)}: must be more than 0")
    if config.kind == "function":
        load_function(config.function)
