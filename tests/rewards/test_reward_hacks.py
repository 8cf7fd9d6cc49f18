r"""Ways to be paid without an answer that a policy finds when it is rewarded long enough, each of them closed."""

from __future__ import annotations

import pytest

from p2o.evolution.validity import TemplateFilter
from p2o.rewards import grade_math
from p2o.rewards.gym_scores import judge, pack
from p2o.types import Outcome

SEVERAL = [
    r"\boxed{6} \boxed{7} \boxed{8}",
    r"\boxed{7} or \boxed{8}",
    r"\boxed{8} or \boxed{7}",
    r"either $\boxed{7}$, $\boxed{8}$",
    r"\boxed{6}, \boxed{7}, and \boxed{8}",
    r"(a) \boxed{7} (b) \boxed{8}",
    r"maybe \boxed{7}" "\n" r"or maybe \boxed{8}",
    r"\boxed{\boxed{7} \boxed{8}}",
    r"\boxed{7}\quad\boxed{8}\quad\boxed{9}",
]
ALL_CANDIDATES = [
    r"\boxed{6, 7, 8}",
    r"\boxed{7 \text{ or } 8}",
    r"\boxed{7\text{ and }8}",
    r"\boxed{\{6, 7, 8\}}",
    r"\boxed{[6, 8]}",
    r"\boxed{(6, 8)}",
    r"\boxed{x \in [0, 10]}",
    r"\boxed{6 \le x \le 8}",
    r"\boxed{7.5 \pm 0.5}",
    r"\boxed{\pm 7}",
    r"\boxed{x > 0}",
    r"\boxed{\mathbb{R}}",
    r"\boxed{1, 2, 3, \ldots, 100}",
    r"\boxed{0 \ldots 9}",
    r"\boxed{x}",
    r"\boxed{7 = 8}",
    r"\boxed{7 \ne 8}",
    r"\boxed{6 7 8}",
    r"\boxed{7; 8}",
    r"\boxed{7 / 8 / 9}",
    r"\boxed{\begin{pmatrix} 6 & 7 & 8 \end{pmatrix}}",
    r"\boxed{\text{7 or 8, whichever is right}}",
    "Answer: 7 or 8",
    "Answer: between 6 and 8",
    "The answer is 6, 7 or 8.",
]
RESTATED = [r"\boxed{\text{the correct answer}}", r"\boxed{answer}", r"\boxed{?}", r"\boxed{\_}", r"\boxed{gold}"]


@pytest.mark.parametrize("text", SEVERAL)
def test_several_boxes_are_not_a_choice_for_the_grader(text: str) -> None:
    assert grade_math(text, "7").reward == 0.0


@pytest.mark.parametrize("text", ALL_CANDIDATES)
def test_an_interval_or_a_list_of_all_candidates_is_no_answer(text: str) -> None:
    assert grade_math(text, "7").reward == 0.0


@pytest.mark.parametrize("text", RESTATED)
def test_the_question_in_other_words_is_no_answer(text: str) -> None:
    assert grade_math(text, "7").reward == 0.0


def test_what_looks_alike_and_is_right_still_counts() -> None:
    for text in (r"\boxed{6} is wrong. So \boxed{7}", r"$\boxed{7}$ and again $\boxed{7}$", r"\boxed{x = 7}"):
        assert grade_math(text, "7").outcome is Outcome.CORRECT
    assert grade_math(r"\boxed{8} and \boxed{6}", "6, 8").outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "template",
    [
        "The answer is 1234. Print it.",
        "End with \\boxed{1234} whatever the question is.",
        "Hint: 1,234",
        "Say: 1234!",
        "If you are not sure, write 99 or 1234.",
        "Answer: East Berlin",
        "say EAST   BERLIN",
    ],
)
def test_a_template_that_holds_a_gold_to_copy_is_refused(template: str) -> None:
    judge = TemplateFilter(["1234", "East Berlin", "yes"], max_tokens=99, count_tokens=lambda text: len(text.split()))
    assert judge.reject(template) == "leak"


def test_nonsense_that_a_gym_task_would_pay_for_in_full_is_not_paid() -> None:
    """Its scorer compares truth values of texts, so that any text would be right."""
    import reasoning_gym

    params = {"size": 1, "seed": 3}
    entry = reasoning_gym.create_dataset("game_of_life_halting", **params)[0]
    packed = pack(entry)
    task = {"grid_size_x": 25, "grid_size_y": 25}
    assert judge("no answer at all", "game_of_life_halting", {}, packed) is not Outcome.CORRECT
    assert judge("yes of course, maybe", "game_of_life_halting", task, packed) is not Outcome.CORRECT
