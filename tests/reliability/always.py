"""Rewards without luck."""

from __future__ import annotations

from p2o.types import Problem


def right(prediction: str, problem: Problem) -> float:
    return 1.0


def wrong(prediction: str, problem: Problem) -> float:
    return 0.0
