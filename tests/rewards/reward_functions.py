"""Reward functions for the tests of the pool; its workers import them by their dotted names."""

from __future__ import annotations

import os
import sys
import time

from p2o.types import Problem

NOT_CALLABLE = 1.0


def length(prediction: str, problem: Problem) -> float:
    return min(1.0, len(prediction) / float(problem.answer))


def heavy_modules(prediction: str, problem: Problem) -> float:
    return float(any(name in sys.modules for name in ("torch", "transformers", "lightning")))


def misbehave(prediction: str, problem: Problem) -> float:
    """Does what the prediction says."""
    if prediction.startswith("sleep"):
        time.sleep(float(prediction.split()[1]))
    elif prediction == "allocate":
        held = bytearray(1 << 32)
        return float(len(held) > 0)
    elif prediction == "die":
        os._exit(1)
    elif prediction == "raise":
        raise RuntimeError("on purpose")
    elif prediction == "recurse":
        return misbehave(prediction, problem)
    elif prediction == "print":
        print("noise", flush=True)
        sys.stderr.write("more noise")
        assert sys.stdin.read() == ""
    elif prediction == "out of range":
        return 2.0
    elif prediction == "not a number":
        return float("nan")
    return 1.0
