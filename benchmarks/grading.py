"""Grading 5,000 answers with two workers, against math-verify called in a loop.

Answers are made here: numbers, fractions, roots, expressions, pairs and intervals, half of them written in another way
than the gold, half of them wrong, no two pairs alike. ``--answers FILE`` takes lines of JSON with "prediction" and
"gold" instead, repeated until there are 5,000.
"""

from __future__ import annotations

import json
import random
from itertools import cycle, islice
from pathlib import Path

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch

COUNT = 5000
WORKERS = 2


def _made() -> list[tuple[str, str]]:
    """Pairs of answer and gold, as LaTeX."""
    draw = random.Random(0)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < COUNT:
        a, b, c = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 9)
        wrong = draw.choice((0, 1))
        d = a + wrong
        pair = draw.choice(
            (
                (f"{1000 * d + b}", f"{1000 * a + b}"),
                (f"{d / 4}", rf"\frac{{{a}}}{{4}}"),
                (rf"\frac{{{d * c}}}{{{b * c}}}", rf"\frac{{{a}}}{{{b}}}"),
                (rf"{c}\sqrt{{{d}}}", rf"\sqrt{{{a * c * c}}}"),
                (f"x^2 + {d + b}x + {d * b}", f"(x + {a})(x + {b})"),
                (f"({d}, {b})", rf"\left({a},{b}\right)"),
                (f"[{d}, {a + b + 1})", f"[{a},{a + b + 1})"),
                (rf"{d}\pi / {c}", rf"\frac{{{a}\pi}}{{{c}}}"),
                (f"{d}%", f"{a}\\%"),
            )
        )
        pairs[pair] = None
    return list(pairs)


def _pairs(answers: str | None) -> list[tuple[str, str]]:
    if answers is None:
        return _made()
    cases = [json.loads(line) for line in Path(answers).read_text().splitlines()]
    return list(islice(cycle([(str(case["prediction"]), str(case["gold"])) for case in cases]), COUNT))


def ours(watch: Stopwatch, answers: str | None) -> None:
    """A pool that remembers nothing from run to run: equal pairs of one problem are made different by its id."""
    from p2o.config.schema import RewardConfig
    from p2o.rewards import GraderPool
    from p2o.types import Problem

    pairs = _pairs(answers)
    run = 0
    with GraderPool(RewardConfig(kind="math", workers=WORKERS)) as pool:
        pool.grade_many([(Problem(str(i), "", str(i)), rf"\boxed{{{i}}}") for i in range(8 * WORKERS)])
        while True:
            asked = [
                (Problem(f"{run}-{i}", "", gold), rf"The answer is \boxed{{{answer}}}.")
                for i, (answer, gold) in enumerate(pairs)
            ]
            run += 1
            watch.begin()
            grades = pool.grade_many(asked)
            watch.end(answers=len(grades), correct=sum(g.reward for g in grades))


def math_verify_loop(watch: Stopwatch, answers: str | None) -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.ERROR)
    pairs = _pairs(answers)
    while True:
        watch.begin()
        correct = sum(
            verify(parse(rf"\boxed{{{gold}}}"), parse(rf"The answer is \boxed{{{answer}}}.")) for answer, gold in pairs
        )
        watch.end(answers=len(pairs), correct=correct)


def rows(answers: str | None) -> tuple[Row, ...]:
    argument = {"answers": answers}
    return (
        Row(
            f"grading {COUNT:,} answers",
            (
                Contestant("p2o, two workers", "benchmarks.grading:ours", argument),
                Contestant("math-verify in a loop", "benchmarks.grading:math_verify_loop", argument),
            ),
            memory="",
        ),
    )
