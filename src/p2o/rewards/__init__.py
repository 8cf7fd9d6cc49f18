"""Rewards: finding the answer in a response, judging it, and doing both for thousands of hostile ones."""

from __future__ import annotations

from collections.abc import Sequence

from p2o.rewards.equivalence import judge
from p2o.rewards.extract import extract_answer
from p2o.rewards.pool import GraderPool
from p2o.rewards.scorers import RewardError
from p2o.types import Grade, Outcome

__all__ = ["GraderPool", "RewardError", "grade_math"]

EXTRACT = ("boxed", "answer_line", "bare", "last_formula", "last_number")


def grade_math(prediction: str, gold: str, extract: Sequence[str] = EXTRACT) -> Grade:
    r"""Is the answer in ``prediction`` mathematically ``gold``?

    The answer is the last ``\boxed{}`` (several side by side are one list), else what follows "Answer:" or "the answer
    is", else the whole text if it is nothing but an answer, else the last formula or number. The policy on units,
    percent, decimals, lists and the like is the table of :mod:`p2o.rewards.equivalence`. Several different answers to
    a question with one are wrong, whatever form they are given in.

    Args:
        prediction: a response, or a bare answer.
        gold: the reference answer, with or without ``$`` or ``\boxed{}``.
        extract: where to look for the answer, in order; see :mod:`p2o.rewards.extract`.

    Returns:
        ``correct`` with reward 1, else ``wrong`` or ``unparseable`` with 0, and the answer that was extracted.

    It runs in this process without a deadline. What a model writes in training belongs in a :class:`GraderPool`.
    """
    answer = extract_answer(prediction, extract, mathematical=True)
    outcome = Outcome.UNPARSEABLE if answer is None else judge(answer, gold)
    return Grade(outcome, float(outcome is Outcome.CORRECT), answer)
