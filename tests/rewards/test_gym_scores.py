from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from p2o.config.schema import RewardConfig
from p2o.rewards import GraderPool
from p2o.rewards.gym_scores import EVALUATED, PARSED, is_arithmetic, judge, pack, unpack
from p2o.types import Outcome, Problem

SAMPLES = 3
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks whose entries have no answer of their own: many are right."""
TASKS = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})


def entries(task: str, count: int = SAMPLES, **params: Any) -> list[dict[str, Any]]:
    dataset = reasoning_gym.create_dataset(task, size=count, seed=3, **params)
    return [dataset[index] for index in range(count)]


def problem(task: str, entry: dict[str, Any], **params: Any) -> Problem:
    metadata = {"task": task, "params": params, "entry": json.loads(json.dumps(pack(entry)))}
    return Problem(f"{task}-{entry['question']}", entry["question"], entry["answer"] or "", task, metadata)


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    config = RewardConfig(kind="reasoning_gym", extract=["answer_line", "whole"], deadline_s=20.0)
    with GraderPool(config) as pool:
        yield pool


def test_entries_survive_json() -> None:
    entry = {"a": (1, [2, (3,)], {"b": None}), "c": {1: "x", (2, 3): True}, "d": 1.5}
    assert unpack(json.loads(json.dumps(pack(entry)))) == entry
    with pytest.raises(TypeError, match="set"):
        pack({"a": {1}})


def test_every_task_takes_its_own_answer_and_no_other_tasks(pool: GraderPool) -> None:
    # knight_swap takes a second to make a question
    problems = [problem(task, entry) for task in TASKS if task != "knight_swap" for entry in entries(task)]
    usable = pool.check_golds(problems)
    unusable = {p.source for p, ok in zip(problems, usable, strict=True) if not ok}
    assert unusable <= {"intermediate_integration"}  # an integral that reasoning-gym could not solve
    answered = [p for p, ok in zip(problems, usable, strict=True) if ok and p.source not in WITHOUT_ANSWER]
    grades = pool.grade_many([(p, p.answer) for p in answered])
    assert [p.id for p, g in zip(answered, grades, strict=True) if g.outcome is not Outcome.CORRECT] == []
    for nonsense in ("xyzzy", "((((", "[]", "no answer at all"):
        grades = pool.grade_many([(p, nonsense) for p in problems])
        assert [p.id for p, g in zip(problems, grades, strict=True) if g.outcome is Outcome.CORRECT] == []


def test_partial_credit_is_no_reward(pool: GraderPool) -> None:
    entry = entries("chain_sum")[0]
    right = problem("chain_sum", entry)
    score = reasoning_gym.create_dataset("chain_sum", seed=0, size=1).score_answer
    assert 0.0 < score(f"{entry['answer']} or so", entry) < 1.0
    grades = pool.grade_many([(right, f"Answer: {entry['answer']} or so"), (right, f"Answer: {entry['answer']}")])
    assert [(grade.outcome, grade.reward) for grade in grades] == [(Outcome.WRONG, 0.0), (Outcome.CORRECT, 1.0)]


def test_a_scorer_that_takes_anything_takes_the_tasks_own_answer_only() -> None:
    for entry in entries("game_of_life_halting", 6):
        other = {"True": "False", "False": "True"}[entry["answer"]]
        score = reasoning_gym.create_dataset("game_of_life_halting", seed=0, size=1).score_answer
        assert score(other, entry) == 1.0  # the trap
        assert judge(entry["answer"], "game_of_life_halting", {}, pack(entry)) is Outcome.CORRECT
        assert judge(other, "game_of_life_halting", {}, pack(entry)) is Outcome.WRONG


def test_params_reach_the_scorer() -> None:
    params = {"min_value": 1, "max_value": 3}
    entry = {"question": "", "answer": "", "metadata": {}}
    assert judge("(1 + 1) * 4 * 3", "puzzle24", {}, entry) is Outcome.CORRECT
    assert judge("(1 + 1) * 4 * 3", "puzzle24", params, entry) is Outcome.WRONG


def test_what_makes_a_scorer_raise_is_unparseable() -> None:
    entry = pack(entries("prime_factorization", 1)[0])
    assert judge("no number", "prime_factorization", {}, entry) is Outcome.UNPARSEABLE


def test_every_scorer_that_evaluates_text_is_known() -> None:
    evaluating, parsing = set(), set()
    for task in TASKS:
        cls, _ = reasoning_gym.factory.DATASETS[task]
        tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
        for node in ast.walk(tree):
            if not (isinstance(node, ast.FunctionDef) and node.name == "score_answer"):
                continue
            calls = [ast.unparse(call) for call in ast.walk(node) if isinstance(call, ast.Call)]
            if any(call.startswith(("eval(", "exec(")) and "entry[" not in call for call in calls):
                evaluating.add(task)
            if any(
                name in call for call in calls for name in ("parse_expr(answer", "sympify(answer", "simplify(answer")
            ):
                parsing.add(task)
    assert evaluating == EVALUATED
    assert parsing == PARSED


def test_nobody_else_in_the_package_evaluates_an_answer() -> None:
    """Helpers that scorers call, by the names that they give to the answer."""
    for module in pkgutil.walk_packages(reasoning_gym.__path__, "reasoning_gym."):
        if ".contrib." in module.name or module.name.endswith("__main__"):
            continue
        imported = importlib.import_module(module.name)
        source = Path(imported.__file__ or "").read_text(encoding="utf-8")
        for name in ("user_solution", "user_answer", "predicted", "solution", "response"):
            assert f"eval({name}" not in source, module.name
            assert f"exec({name}" not in source, module.name


@pytest.mark.parametrize("task", sorted(PARSED))
def test_own_answers_of_parsed_tasks_are_arithmetic(task: str) -> None:
    """But for the integrals that reasoning-gym itself could not solve, which are no questions to ask."""
    answers = [entry["answer"] for entry in entries(task, 20)]
    assert [answer for answer in answers if not is_arithmetic(answer) and "Integral(" not in answer] == []


@pytest.mark.parametrize(
    "text",
    [
        *["().__class__", "__import__('os')", "open('x', 'w')", "x.y", "lambda: 1", "[1]", "eval('1')", "a_b", "'a'"],
        *["2**9999", "2^(3^4)", "9**9**9", "factorial(5)", "1; 2", "1 if 1 else 2", "print(1)", "x" * 501],
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert not is_arithmetic(text)


def test_no_scorer_runs_an_answer(pool: GraderPool, tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    attacks = [
        f"__import__('pathlib').Path('{sentinel}').touch()",
        f"[open('{sentinel}', 'w')]",
        f"().__class__.__base__.__subclasses__()[-1].__init__.__globals__['__builtins__']['open']('{sentinel}', 'w')",
    ]
    problems = [problem(task, entry) for task in sorted(EVALUATED | PARSED) for entry in entries(task, 1)]
    grades = pool.grade_many([(p, attack) for p in problems for attack in attacks])
    assert not any(grade.reward for grade in grades)
    assert not sentinel.exists()
