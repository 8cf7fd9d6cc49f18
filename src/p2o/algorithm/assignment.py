"""Which templates each hard question is answered under in the next epoch: greedy cover, then weighted draws."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence

from p2o.types import PLAIN, Assignment, Template, derive_seed


def greedy_cover(pool: Iterable[Template]) -> tuple[Template, ...]:
    """Z_cov, in the order of choice: always the template that covers most uncovered dev questions, until none adds one.

    Ties go to the higher dev score, then to the shorter text, then to the smaller id, so the order of ``pool`` does
    not matter. Empty if no template solves anything.
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


def assign(
    hard_ids: Sequence[str],
    dev_ids: Collection[str],
    cover: Sequence[Template],
    *,
    k: int,
    plain_rollouts: int,
    same_template: bool,
    seed: int,
) -> Assignment:
    """Draw K templates, with replacement, for every hard question.

    Draws are weighted by mean dev score. A dev question draws from the templates of ``cover`` that solved it, if any
    did; every other question draws from all of ``cover``. ``same_template`` draws one for the whole group. The first
    ``plain_rollouts`` of the K stay plain. Each question has its own seed, so its templates do not depend on the other
    questions. If ``cover`` has no template but the empty one, the assignment is empty: the epoch is plain GRPO.
    """
    if not any(template.text for template in cover):
        return Assignment()
    dev = frozenset(dev_ids)
    plain = min(plain_rollouts, k)
    by_problem: dict[str, tuple[str, ...]] = {}
    for problem_id in hard_ids:
        solvers = [template for template in cover if problem_id in template.covers] if problem_id in dev else []
        rng = random.Random(derive_seed(seed, "assign", problem_id))
        drawn = _draw(solvers or cover, k - plain, same_template, rng)
        by_problem[problem_id] = (PLAIN,) * plain + tuple(template.id for template in drawn)
    return Assignment({template.id: template for template in cover}, by_problem)


def _draw(templates: Sequence[Template], count: int, same: bool, rng: random.Random) -> list[Template]:
    weights = [template.dev_score for template in templates]
    if same:
        return rng.choices(templates, weights) * count
    return rng.choices(templates, weights, k=count)
