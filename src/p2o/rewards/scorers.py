"""The kinds of reward, as functions from a job to a verdict. They run in the workers of the pool.

A job is JSON: ``answer`` is what the policy gave (absent if only the gold is to be checked), ``problem`` has the
fields of :class:`~p2o.types.Problem` that the kind needs.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, cast

from p2o.errors import InputError
from p2o.extensions import load_object
from p2o.rewards import equivalence, gym_scores
from p2o.types import Outcome, Problem

Verdict = tuple[Outcome, float]
Scorer = Callable[[Mapping[str, Any]], Verdict]


class RewardError(InputError):
    """The reward's configuration is wrong, or its workers cannot start."""


def build_scorer(kind: str, function: str | None = None) -> Scorer:
    """The scorer of a kind (math | reasoning_gym | exact | function), with everything imported that it needs."""
    if kind == "function":
        return _function_scorer(load_function(function))
    if kind == "math":
        equivalence.judge(r"\frac{1}{2} + x", r"x + \frac{2}{4}")  # builds tables that no answer should wait for
    if kind == "reasoning_gym":
        importlib.import_module("reasoning_gym")
    return {"math": _score_math, "exact": _score_exact, "reasoning_gym": _score_gym}[kind]


def load_function(name: str | None) -> Callable[[str, Problem], float]:
    """The function that a dotted name stands for.

    Raises:
        ExtensionError: if it cannot be imported.
        RewardError: if it cannot be called.
    """
    function = load_object(str(name), "reward.function")
    if not callable(function):
        raise RewardError(f"reward.function={name} is a {type(function).__name__}, not a function")
    return cast(Callable[[str, Problem], float], function)


def _score_math(job: Mapping[str, Any]) -> Verdict:
    gold = job["problem"]["answer"]
    if "answer" not in job:
        return _all_or_nothing(equivalence.parses(gold), Outcome.UNPARSEABLE)
    outcome = equivalence.judge(job["answer"], gold)
    return outcome, float(outcome is Outcome.CORRECT)


def _score_exact(job: Mapping[str, Any]) -> Verdict:
    gold = _plain(job["problem"]["answer"])
    if "answer" not in job:
        return _all_or_nothing(bool(gold), Outcome.UNPARSEABLE)
    return _all_or_nothing(_plain(job["answer"]) == gold, Outcome.WRONG)


def _score_gym(job: Mapping[str, Any]) -> Verdict:
    gold, metadata = job["problem"]["answer"], job["problem"]["metadata"]
    if "answer" not in job and not gold:  # tasks with many solutions have no answer of their own
        return Outcome.CORRECT, 1.0
    outcome = gym_scores.judge(job.get("answer", gold), metadata["task"], metadata["params"], metadata["entry"])
    return outcome, float(outcome is Outcome.CORRECT)


def _function_scorer(function: Callable[[str, Problem], float]) -> Scorer:
    def score(job: Mapping[str, Any]) -> Verdict:
        if "answer" not in job:
            return Outcome.CORRECT, 1.0
        reward = float(function(job["answer"], Problem(**job["problem"])))
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"the reward function returned {reward}, which is not in [0, 1]")
        return (Outcome.CORRECT if reward >= 1.0 else Outcome.WRONG), reward

    return score


def _all_or_nothing(right: bool, otherwise: Outcome) -> Verdict:
    return (Outcome.CORRECT, 1.0) if right else (otherwise, 0.0)


def _plain(text: str) -> str:
    """The text without case, extra spaces, and the quotes or full stop around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip("\"'`* ").rstrip(".")
