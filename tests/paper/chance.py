"""A reward that random weights earn on any question once in six times: a digest of the answer decides."""

from __future__ import annotations

import hashlib

from p2o.types import Problem


def score(prediction: str, problem: Problem) -> float:
    return float(hashlib.sha256(f"{problem.id}\n{prediction}".encode()).digest()[0] % 6 == 0)
