"""A reward that random weights earn on a third of the questions, every other time: digests decide.

The other questions nobody answers right. So which of them are hard is known before anything is sampled.
"""

from __future__ import annotations

import hashlib

from p2o.types import Problem


def can_be_solved(problem_id: str) -> bool:
    return _digest(problem_id) % 3 == 0


def score(prediction: str, problem: Problem) -> float:
    return float(can_be_solved(problem.id) and _digest(f"{problem.id}\n{prediction}") % 2 == 0)


def _digest(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]
