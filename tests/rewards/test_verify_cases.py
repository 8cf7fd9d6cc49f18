"""The grader on pairs that other projects labelled (the data are not part of the repository)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from p2o.rewards import grade_math

CASES = Path(__file__).parents[2] / "../shared/data/verify_cases.jsonl"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="verify_cases.jsonl is not here")


def _misses(tier: str) -> list[dict[str, Any]]:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    return [
        case
        for case in cases
        if case["tier"] == tier and bool(grade_math(case["prediction"], case["gold"]).reward) != case["equal"]
    ]


def test_core_cases_are_all_right() -> None:
    assert [case["id"] for case in _misses("core")] == []


def test_conventions_are_the_documented_ones() -> None:
    """16 of 108 follow another policy than the table in ``equivalence``; each kind is one decision."""
    policies = {
        "a comma is no decimal point": ["1000,99", "1.22", "Soucis : 2,74 $ a..", "0.111"],
        "decimals agree to six places": ["$(0.6,2.6667]$", "125.663", "x + 1.414I"],
        "lists are unordered": ["10, 4, -2"],
        "no clock": ["20:34:00", "08:34 \\text{P.M.}"],
        "a column is no pair, a system no list": ["[0.5, 1]", "\\begin{cases} a+b=0.5\\\\ a-b=1.732\\end{cases}"],
        "two names for one function differ": ["y = 2x + 3"],
        "'the answer is' marks an answer": ["The answer is A"],
        "the right-hand side is the answer": ["(x+y)^2=81"],
    }
    expected = Counter(prediction for predictions in policies.values() for prediction in predictions)
    misses = Counter(case["prediction"] for case in _misses("convention") if len(case["prediction"]) < 100)
    assert misses == expected
    boxed = [case for case in _misses("convention") if len(case["prediction"]) >= 100]
    assert len(boxed) == 1
    assert boxed[0]["prediction"].endswith("\\boxed{(x+y)^2=81}\n   \\end{align*}")
