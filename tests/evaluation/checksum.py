"""A reward that a random model can earn: two of five answers are right."""

from __future__ import annotations

import os
import time
import zlib

from p2o.types import Problem

SLOW = "P2O_TEST_SLOW"
"""An environment variable: where it is set, grading the second half of the questions takes so long that whoever waits
for the first answers to be written can be sure to come before the last ones are."""


def score(prediction: str, problem: Problem) -> float:
    if os.environ.get(SLOW) and int(problem.question.split()[2]) >= 12:
        time.sleep(2.0)
    return float(zlib.crc32(f"{problem.id}{prediction}".encode()) % 5 < 2)
