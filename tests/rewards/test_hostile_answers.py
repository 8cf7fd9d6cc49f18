"""Text that a model rewarded for fooling the grader could write. Nothing may crash, stall, run or be called right."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest
import reasoning_gym
from hostile import SENTINEL, Watch, framed, hostile
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from p2o.config.schema import RewardConfig
from p2o.rewards import EXTRACT, GraderPool
from p2o.rewards.gym_scores import EVALUATED, PARSED, pack
from p2o.types import Grade, Outcome, Problem

GOLDS = ["271828182", r"\frac{271828}{314159}", r"\sqrt{271829} + 3", "(271828, 314159]", "271828x^2 - 314159y"]
MATH = [Problem(f"hostile-{i}", "", gold) for i, gold in enumerate(GOLDS)]
DEADLINE = 2.0
PATIENCE_S = 60.0
"""For what takes a fraction of a second, unless it takes hours."""
BATCH = 20
BATCHES = 15
"""Of one seed."""
SEED = "P2O_SOAK_SEED"
"""The environment variable that gives the long form the seed of another time."""

MEMORY_MB = {"math": 48, "reasoning_gym": 128}
"""Beyond what a worker has when it is ready. In mathematics some answers ask for more; each gym task keeps some."""


def gym_problems(tasks: Sequence[str]) -> list[Problem]:
    """Two questions a task."""
    problems = []
    for task in tasks:
        dataset = reasoning_gym.create_dataset(task, size=2, seed=3)
        for index in range(2):
            entry = dataset[index]
            metadata = {"task": task, "params": {}, "entry": json.loads(json.dumps(pack(entry)))}
            problems.append(Problem(f"{task}-{index}", entry["question"], entry["answer"] or "", task, metadata))
    return problems


@pytest.fixture(scope="module")
def gym_questions() -> st.SearchStrategy[Problem]:
    """Of all tasks; half of them of those whose scorer evaluates or parses the answer as Python."""
    tasks = set(reasoning_gym.factory.DATASETS) - {"composite", "knight_swap"}  # knight_swap takes a second a question
    risky = gym_problems(sorted(EVALUATED | PARSED))
    return st.one_of(st.sampled_from(risky), st.sampled_from(gym_problems(sorted(tasks - EVALUATED - PARSED))))


@pytest.fixture
def watched() -> Iterator[Callable[[str, list[str]], tuple[GraderPool, Watch]]]:
    """Starts a pool whose workers are watched; afterwards no answer may have been executed."""
    SENTINEL.unlink(missing_ok=True)
    pools: list[GraderPool] = []
    with pytest.MonkeyPatch.context() as patch:

        def start(kind: str, extract: list[str]) -> tuple[GraderPool, Watch]:
            watch = Watch()
            watch.install(patch)
            memory = MEMORY_MB[kind]
            config = RewardConfig(kind=kind, extract=extract, workers=2, deadline_s=DEADLINE, memory_mb=memory)
            pools.append(GraderPool(config))
            return pools[0], watch

        yield start
        for pool in pools:
            pool.close()
    assert not SENTINEL.exists()


def graded(pool: GraderPool, answers: list[tuple[Problem, str]]) -> list[Grade]:
    futures = []
    for problem, text in answers:
        start = time.thread_time()
        futures.append(pool.submit(problem, text))
        assert time.thread_time() - start < PATIENCE_S, f"finding the answer took too long: {text[:200]!r}"
    return [future.result(timeout=len(answers) * (DEADLINE + 1.0) + 600.0) for future in futures]


def is_gold(problem: Problem, grade: Grade) -> bool:
    """Some tasks' answer is 0, and a hostile text may say so."""
    return bool(problem.answer) and (grade.extracted or "").strip().casefold() == problem.answer.strip().casefold()


def try_hostile_answers(
    questions: st.SearchStrategy[Problem], pool: GraderPool, watch: Watch, memory_mb: float, wanted: int, start: int
) -> None:
    """Hypothesis repeats itself: it is asked again, with the next seed, until ``wanted`` pairs were different ones."""
    outcomes: Counter[Outcome] = Counter()
    tried: set[int] = set()
    print(f"{SEED}={start} tries the same answers again")

    @settings(max_examples=BATCHES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(questions, hostile, st.integers(0, 7)), min_size=BATCH, max_size=BATCH))
    def none_is_right(answers: list[tuple[Problem, str, int]]) -> None:
        pairs = {(problem.id, text := framed(answer, frame)): (problem, text) for problem, answer, frame in answers}
        new = {hash(key): pair for key, pair in pairs.items() if hash(key) not in tried}
        asked = list(new.values())
        grades = graded(pool, asked)
        for (problem, text), grade in zip(asked, grades, strict=True):
            if not is_gold(problem, grade):
                assert grade.outcome is not Outcome.CORRECT, (problem.id, problem.answer, text[:200])
                assert grade.reward == 0.0
        outcomes.update(grade.outcome for grade in grades)
        tried.update(new)  # at the end, so that one that fails fails again when it is made smaller

    for number in count(start):
        seed(number)(none_is_right)()
        print(f"{len(tried)} different answers: {dict(outcomes)}", flush=True)
        if len(tried) >= wanted:
            break
    grown, resident = max(watch.grown_mb.values()), max(watch.resident_mb.values())
    print(f"{len(watch.seconds)} of them graded by {len(watch.ready_mb)} workers")
    print(f"slowest {max(watch.seconds):.2f} s")
    print(f"most memory of a worker: {grown:.0f} MiB beyond its start, {resident:.0f} MiB resident")
    assert outcomes.total() == len(tried)
    assert max(watch.seconds) < DEADLINE + PATIENCE_S
    assert grown <= memory_mb + 1.0


Start = Callable[[str, list[str]], tuple[GraderPool, Watch]]
AMOUNTS = [
    pytest.param(300, id="few"),
    pytest.param(10_000, id="ten thousand", marks=[pytest.mark.soak, pytest.mark.timeout(7200)]),
]


@pytest.fixture
def start(amount: int) -> int:
    """The few are always the same; the many are new ones each time, unless the seed of another time is given."""
    return 0 if amount == 300 else int(os.environ.get(SEED) or secrets.randbits(32))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_hostile_answers_in_mathematics(amount: int, start: int, watched: Start) -> None:
    pool, watch = watched("math", list(EXTRACT))
    try_hostile_answers(st.sampled_from(MATH), pool, watch, MEMORY_MB["math"], amount, start)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_hostile_answers_to_the_gyms_tasks(
    amount: int, start: int, gym_questions: st.SearchStrategy[Problem], watched: Start
) -> None:
    """The whole text goes to the task's scorer, so that nothing but the scorer stands between."""
    pool, watch = watched("reasoning_gym", ["whole"])
    try_hostile_answers(gym_questions, pool, watch, MEMORY_MB["reasoning_gym"], amount, start)
