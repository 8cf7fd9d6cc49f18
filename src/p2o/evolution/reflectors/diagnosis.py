"""Naming what went wrong in a response, by rules on its text."""

from __future__ import annotations

import re

from p2o.evolution.reflectors.base import Feedback
from p2o.evolution.validity import Answers
from p2o.types import Outcome

KINDS = {
    "truncated": "the response was cut off before it reached its answer",
    "no_answer": "no answer could be read from the response",
    "unwieldy": "the answer was too unwieldy to be checked",
    "echoed": "the response mostly repeats the question",
    "no_working": "an answer was given at once, without any working",
    "several_answers": "the response commits to more than one answer",
    "wrong_format": "the right value stands in the last line, but not where or as it was asked for",
    "wrong_working": "there is working, and it leads to a wrong answer",
}
"""The kinds of failure that a strategy can address."""

FEW_WORDS = 10
"""A response of at most this many words shows no working."""

FINAL_ANSWER = re.compile(r"\\boxed\s*\{([^{}]*)\}|\banswer\s*(?:is|:)\s*\**\s*([^\s*,;]+)", re.IGNORECASE)


def diagnose(example: Feedback) -> tuple[str, ...]:
    """The kinds of failure of one response, in the order of :data:`KINDS`; empty if it was solved."""
    if example.solved:
        return ()
    words = example.response.split()
    found = {
        "truncated": example.finish_reason == "length",
        "no_answer": example.extracted is None or example.outcome is Outcome.UNPARSEABLE,
        "unwieldy": example.outcome is Outcome.TIMEOUT,
        "echoed": _echoes(words, example.question.split()),
        "no_working": len(words) <= FEW_WORDS,
        "several_answers": len(_final_answers(example.response)) > 1,
        "wrong_format": _ends_with_gold(example),
    }
    kinds = tuple(kind for kind, present in found.items() if present)
    return kinds or ("wrong_working",)


def _echoes(response: list[str], question: list[str]) -> bool:
    """Whether more than half of the response's word triples are the question's."""
    mine = [tuple(response[i : i + 3]) for i in range(len(response) - 2)]
    theirs = {tuple(question[i : i + 3]) for i in range(len(question) - 2)}
    return bool(mine) and 2 * sum(triple in theirs for triple in mine) > len(mine)


def _final_answers(response: str) -> set[str]:
    answers = (boxed or named for boxed, named in FINAL_ANSWER.findall(response))
    return {answer.strip(" .$").casefold() for answer in answers}


def _ends_with_gold(example: Feedback) -> bool:
    lines = [line for line in example.response.splitlines() if line.strip()]
    return bool(lines) and Answers([example.answer]).found_in(lines[-1])
