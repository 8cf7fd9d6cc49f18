"""Rewards that a random model can earn: the answer's checksum decides, so a third of all answers are right."""

from __future__ import annotations

import zlib

from p2o.types import Problem


def score(prediction: str, problem: Problem) -> float:
    return float(zlib.crc32(f"{problem.id}{prediction}".encode()) % 3 == 0)


def can_be_solved(problem_id: str) -> bool:
    return zlib.crc32(problem_id.encode()) % 2 == 0


def score_some(prediction: str, problem: Problem) -> float:
    """Half of the questions nobody answers right, so it is known beforehand that they are hard."""
    return score(prediction, problem) if can_be_solved(problem.id) else 0.0
