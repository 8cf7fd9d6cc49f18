"""Questions of reasoning-gym. What does not depend on the process that makes them is made in this one."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import pytest

from p2o.config.schema import ReasoningGymData, RewardConfig, TaskMix
from p2o.rewards import GraderPool
from p2o.tasks import DataError, ProblemSet, generate, gym, load_problems
from p2o.tasks.generate import shares
from p2o.types import Outcome

REWARD = RewardConfig(kind="reasoning_gym", extract=["answer_line", "whole"], deadline_s=20.0)
MAKE_QUESTIONS = inspect.unwrap(gym.make_questions)
SUMS = TaskMix(name="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "make_questions", generate.make)


@pytest.fixture
def _in_a_process_of_their_own(_in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of tests."""
    monkeypatch.setattr(gym, "make_questions", MAKE_QUESTIONS)


def config(tasks: dict[str, TaskMix], **changes: Any) -> ReasoningGymData:
    return ReasoningGymData(**{"prompt": "{question}", "tasks": tasks, "train_size": 30, "val_size": 20, **changes})


def load(tasks: dict[str, TaskMix], reward: RewardConfig = REWARD, **changes: Any) -> ProblemSet:
    return load_problems(config(tasks, **changes), reward)


def test_a_mixture_by_its_seed() -> None:
    tasks = {"sums": SUMS, "letters": TaskMix(name="letter_counting", weight=2.0)}
    first, again, other = load(tasks), load(tasks), load(tasks, seed=7)
    assert first == again
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert Counter(p.source for p in first.train) == {"sums": 10, "letters": 20}
    assert Counter(p.source for p in first.val) == {"sums": 7, "letters": 13}
    assert [p.source for p in first.train] != sorted(p.source for p in first.train)
    assert all(p.id.startswith(f"{p.source}-") for p in first.train + first.val)
    assert first.report.render() == "reasoning_gym: 50 of 50 rows are usable"


@pytest.mark.usefixtures("_in_a_process_of_their_own")
def test_tasks_that_depend_on_hashes_or_the_global_generator_are_reproducible() -> None:
    names = ["list_functions", "isomorphic_strings", "ransom_note", "word_ladder", "intermediate_integration"]
    tasks = {name: TaskMix(name=name) for name in names}
    few = {"train_size": 15, "val_size": 5}
    assert load(tasks, **few).fingerprint == load(tasks, **few).fingerprint


def test_no_question_comes_twice_whatever_task_of_the_mixture_made_it() -> None:
    problems = load({"a": SUMS, "b": SUMS, "c": SUMS}, train_size=200, val_size=100)
    questions = [p.question for p in problems.train + problems.val]
    assert len(set(questions)) == len(questions) == 300


def test_the_held_out_questions_do_not_depend_on_the_training_size() -> None:
    assert load({"sums": SUMS}).val == load({"sums": SUMS}, train_size=60).val


def test_the_tasks_own_scorer_takes_its_answers() -> None:
    problems = load({"countdown": TaskMix(name="countdown"), "sums": SUMS})
    with GraderPool(REWARD) as pool:
        grades = pool.grade_many([(p, f"Answer: {p.answer}") for p in problems.train])
    assert {grade.outcome for grade in grades} == {Outcome.CORRECT}


def test_a_task_without_an_answer_of_its_own_is_usable() -> None:
    problems = load({"graph": TaskMix(name="graph_color")}, train_size=4, val_size=2)
    assert {p.answer for p in problems.train} == {""}
    assert len(problems.train) == 4


@pytest.mark.parametrize(
    ("size", "weights", "expected"),
    [
        (10, [1.0, 1.0, 1.0], [4, 3, 3]),
        (96, [1.0, 2.0], [32, 64]),
        (1, [1.0, 9.0], [0, 1]),
        (7, [0.5, 0.25, 0.25], [3, 2, 2]),
    ],
)
def test_shares_add_up(size: int, weights: list[float], expected: list[int]) -> None:
    assert sum(shares(size, weights)) == size
    assert sorted(shares(size, weights)) == sorted(expected)


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ({}, {}, "data.tasks: give at least one"),
        ({"x": TaskMix(name="chain_sum", weight=0.0)}, {}, "each weight above 0"),
        ({"x": TaskMix(name="chain_summ")}, {}, "data.tasks.x: chain_summ .*not registered"),
        ({"x": TaskMix(name="chain_sum", params={"terms": 2})}, {}, "data.tasks.x: chain_sum .*terms"),
        ({"x": TaskMix(name="chain_sum", params={"min_terms": 5, "max_terms": 2})}, {}, "data.tasks.x: chain_sum"),
        ({"x": SUMS}, {"train_size": None}, "set data.train_size and data.val_size"),
        ({"x": TaskMix(name="coin_flip", params={"min_trials": 3, "max_trials": 3})}, {},
         "data.tasks.x: coin_flip .* lacks 12 of 20 distinct questions wanted for val"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(tasks: dict[str, TaskMix], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tasks, **changes)


@pytest.mark.usefixtures("_in_a_process_of_their_own")
def test_another_process_says_what_cannot_work_too() -> None:
    with pytest.raises(DataError, match=r"data\.tasks\.x: chain_summ .*not registered"):
        load({"x": TaskMix(name="chain_summ")})
