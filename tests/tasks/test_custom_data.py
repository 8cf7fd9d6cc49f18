"""Questions from a user's own function."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2o.config.schema import CustomData, RewardConfig
from p2o.extensions import ExtensionError
from p2o.tasks import DataError, load_problems

EXACT = RewardConfig(kind="exact")
DATA = CustomData(
    prompt="{question}", factory="question_factories.doubles", params={"times": 2}, train_size=3, val_size=2
)


def test_a_factory_gets_its_configuration_and_a_question_in_both_parts_is_held_out() -> None:
    problems = load_problems(DATA, EXACT)
    assert [problem.question for problem in problems.val] == ["How much is 2 times 0?", "How much is 2 times 1?"]
    assert [problem.answer for problem in problems.train] == ["4", "6", "8"]
    assert "question_factories.doubles: 5 of 6 rows are usable" in problems.report.render()
    assert "question seen before" in problems.report.render()
    other = load_problems(replace(DATA, params={"times": 3}), EXACT)
    assert [problem.answer for problem in other.train] == ["6", "9", "12"]
    assert other.fingerprint != problems.fingerprint


def test_a_row_that_a_factory_cannot_use_is_reported() -> None:
    report = load_problems(replace(DATA, factory="question_factories.with_an_unusable_row"), EXACT).report
    assert report.faults["question about nothing"] == 1


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("question_factories.halves", ExtensionError, r"data\.factory=question_factories\.halves: .*no attribute"),
        ("absent.doubles", ExtensionError, r"data\.factory=absent\.doubles: .*PYTHONPATH"),
        (
            "question_factories.flat",
            DataError,
            r"flat returned list \[Problem.*: return two lists of p2o\.types\.Problem",
        ),
        ("question_factories.texts", DataError, r"data\.factory=question_factories\.texts returned str '2'"),
        ("question_factories.nothing", DataError, r"data\.factory=question_factories\.nothing returned NoneType"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(factory: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_problems(replace(DATA, factory=factory), EXACT)
