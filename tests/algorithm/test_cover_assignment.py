from __future__ import annotations

import json
from collections import Counter
from itertools import permutations

import pytest

from p2o.algorithm.assignment import (
    assign,
    greedy_cover,
)
from p2o.types import PLAIN, Assignment, Template


def template(text: str, covers: str, score: float | None = None) -> Template:
    return Template(text, dev_score=len(covers) / 10 if score is None else score, covers=frozenset(covers))


def test_greedy_cover_by_hand() -> None:
    wide = template("wide", "abcd")
    left = template("left", "abe")  # adds e
    right = template("right", "cdf")  # adds f
    useless = template("useless", "ab")
    # wide covers 4; left and right each add one question, 0.3 a score, "left" is shorter
    assert greedy_cover([right, useless, left, wide]) == (wide, left, right)


def test_a_large_template_can_make_earlier_favourites_of_the_rest() -> None:
    # after abcd, "xy" adds two and comes before "de", which adds one though it solves as many
    assert [t.text for t in greedy_cover([template("1", "abcd"), template("2", "de"), template("3", "xy")])] == [
        "1",
        "3",
        "2",
    ]


def test_ties_do_not_depend_on_the_order_of_the_pool() -> None:
    pool = [template("long one", "a", 0.5), template("short", "b", 0.5), template("other", "c", 0.5)]
    best = template("best", "d", 0.9)
    chosen = {tuple(t.text for t in greedy_cover(order)) for order in permutations([*pool, best])}
    (order,) = chosen
    assert order[0] == "best"
    assert order[-1] == "long one"
    by_id = sorted(pool[1:], key=lambda t: t.id)
    assert order[1:3] == tuple(t.text for t in by_id)


def test_cover_is_empty_where_nothing_is_solved() -> None:
    assert greedy_cover([]) == ()
    assert greedy_cover([template("", ""), template("idle", "")]) == ()


A = template("way a", "ab", 0.6)
B = template("way b", "bc", 0.2)


def assignment_of(hard: list[str], *, k: int = 6, plain: int = 1, same: bool = False, seed: int = 0) -> Assignment:
    return assign(hard, ["a", "b", "c", "d"], (A, B), k=k, plain_rollouts=plain, same_template=same, seed=seed)


def test_dev_questions_meet_only_the_templates_that_solved_them() -> None:
    result = assignment_of(["a", "c"])
    assert result.by_problem["a"] == (PLAIN, *[A.id] * 5)
    assert result.by_problem["c"] == (PLAIN, *[B.id] * 5)


@pytest.mark.parametrize("kind", ["train", "d"])
def test_other_questions_draw_from_the_whole_cover_by_dev_score(kind: str) -> None:
    ids = [f"train-{i}" for i in range(2000)]
    dev = ids if kind == "d" else []  # dev questions that nothing solved draw from the whole cover too
    result = assign(ids, dev, (A, B), k=2, plain_rollouts=0, same_template=False, seed=1)
    drawn = Counter(template_id for group in result.by_problem.values() for template_id in group)
    assert drawn[A.id] / 4000 == pytest.approx(0.6 / 0.8, abs=0.02)
    pairs = Counter(frozenset(group) for group in result.by_problem.values())
    assert pairs[frozenset({A.id, B.id})] / 2000 == pytest.approx(2 * 0.75 * 0.25, abs=0.03)  # with replacement


def test_same_template_is_one_for_the_group() -> None:
    result = assignment_of([f"q{i}" for i in range(50)], same=True)
    groups = [set(group[1:]) for group in result.by_problem.values()]
    assert all(len(group) == 1 for group in groups)
    assert {next(iter(group)) for group in groups} == {A.id, B.id}


def test_a_question_s_draw_does_not_depend_on_the_others() -> None:
    ids = [f"q{i}" for i in range(20)]
    assert assignment_of(ids).by_problem["q7"] == assignment_of(["q7"]).by_problem["q7"]
    assert assignment_of(ids).by_problem == assignment_of(ids[::-1]).by_problem
    assert assignment_of(ids, seed=1).by_problem != assignment_of(ids, seed=2).by_problem


@pytest.mark.parametrize("cover", [(), (template("", "abc"),)])
def test_no_template_means_plain_grpo(cover: tuple[Template, ...]) -> None:
    result = assign(["a"], ["a"], cover, k=6, plain_rollouts=1, same_template=False, seed=0)
    assert result == Assignment()
    assert result.texts("a", 3) == ("", "", "")


def test_texts_of_an_assignment_and_its_json() -> None:
    result = assignment_of(["a"], k=3, plain=1)
    assert result.texts("a", 3) == ("", "way a", "way a")
    assert assignment_of(["a"], k=1, plain=2).texts("a", 1) == ("",)
    assert Assignment.from_json(json.loads(json.dumps(result.to_json()))) == result
    child = Template("z", parents=(A.id, PLAIN), epoch=3, dev_score=0.25, covers=frozenset({"y", "x"}))
    assert Template.from_json(json.loads(json.dumps(child.to_json()))) == child
