"""The fewest templates, greedily, that solve every dev question that any template solves."""

from __future__ import annotations

from collections.abc import Iterable

from p2o.types import Template


def greedy_cover(pool: Iterable[Template]) -> tuple[Template, ...]:
    """Z_cov, in the order of choice: always the template that covers most uncovered dev questions, until none adds one.

    Ties go to the higher dev score, then to the shorter text, then to the smaller id, so the order of ``pool`` has
    no say. Empty where no template solves anything.
    """
    ranked = sorted(pool, key=lambda template: (-template.dev_score, len(template.text), template.id))
    cover: list[Template] = []
    covered: frozenset[str] = frozenset()
    while ranked:
        best = max(ranked, key=lambda template: len(template.covers - covered))
        if best.covers <= covered:
            break
        cover.append(best)
        covered |= best.covers
    return tuple(cover)
