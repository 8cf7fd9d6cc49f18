"""Which templates each hard question meets in the next epoch, and templates and assignments as JSON."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from p2o.types import PLAIN, Assignment, Template, derive_seed


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

    The odds are the templates' mean dev scores, among those of ``cover`` that solved the question where it is a dev
    question that any of them solved, else among all of ``cover``. ``same_template`` draws one for the whole group.
    The first ``plain_rollouts`` of the K stay plain. Every question has a seed of its own, so its templates do not
    depend on the other questions. Where the cover is empty, or nothing but the empty template, so is the assignment:
    the epoch is plain GRPO.
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


def template_to_json(template: Template) -> dict[str, Any]:
    return {
        "id": template.id,
        "text": template.text,
        "parents": list(template.parents),
        "epoch": template.epoch,
        "dev_score": template.dev_score,
        "covers": sorted(template.covers),
    }


def template_from_json(value: Mapping[str, Any]) -> Template:
    """The inverse of :func:`template_to_json`; the id follows from the text."""
    return Template(
        text=value["text"],
        parents=tuple(value["parents"]),
        epoch=value["epoch"],
        dev_score=value["dev_score"],
        covers=frozenset(value["covers"]),
    )


def assignment_to_json(assignment: Assignment) -> dict[str, Any]:
    return {
        "templates": [template_to_json(template) for template in assignment.templates.values()],
        "by_problem": {problem_id: list(ids) for problem_id, ids in assignment.by_problem.items()},
    }


def assignment_from_json(value: Mapping[str, Any]) -> Assignment:
    """The inverse of :func:`assignment_to_json`."""
    templates = [template_from_json(template) for template in value["templates"]]
    return Assignment(
        {template.id: template for template in templates},
        {problem_id: tuple(ids) for problem_id, ids in value["by_problem"].items()},
    )
