"""A reward that a random model can earn: the answer's checksum decides, so a third of all answers are right."""

from __future__ import annotations

import zlib

from p2o.types import Problem


def score(prediction: str, problem: Problem) -> float:
    return float(zlib.crc32(f"{problem.id}{prediction}".encode()) % 3 == 0)
