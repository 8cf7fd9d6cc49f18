"""What an epoch's records say: the row of the summary."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from p2o.algorithm.hard_set import HardSet, Record
from p2o.algorithm.state import EpochSummary, RunState
from p2o.evaluation.statistics import pass_at_k
from p2o.evolution.gepa_phase import Evolution
from p2o.types import Assignment


def epoch_summary(
    state: RunState, hard: HardSet, evolution: Evolution | None, assignment: Assignment, note: str
) -> EpochSummary:
    """The epoch's row, read off the records of its rounds and the outcome of its prompt phase."""
    records = list(state.records.values())
    plain = [(r.plain_count, r.plain_correct) for r in records]
    total = sum(r.plain_count + r.templated_count for r in records)
    last = state.validation.history[-1] if state.validation.history else None
    return EpochSummary(
        epoch=state.epoch,
        step=state.step,
        train_reward=sum(r.plain_correct + r.templated_correct for r in records) / max(total, 1),
        val_accuracy=last[1] if last is not None and last[0] == state.step else None,
        hard=len(hard.ids),
        hard_all_fail=hard.all_fail,
        templates=len(assignment.templates),
        templates_best_dev=max((t.dev_score for t in evolution.pool), default=None) if evolution else None,
        dev_seed_score=evolution.seed_dev_score if evolution else None,
        covered=len(frozenset().union(*(t.covers for t in assignment.templates.values()))),
        leaked=evolution.leaked if evolution else 0,
        plain_pass_at_1=_mean_pass([counts for counts in plain if counts[0]], 1),
        plain_pass_at_k=_mean_pass(plain, max((r.count for r in records), default=1)),
        **compared(records),
        note=note,
    )


def compared(records: Sequence[Record]) -> dict[str, Any]:
    """Pass@1 and Pass@k of plain and of evolved prompts on the same questions: those that were answered under both.

    k, named ``evolved_k``, is the most rollouts that each of these questions has on both sides. Where it has but one
    plain rollout, k is what the evolved side has, and the plain Pass@k is null unless that is one too. Where no
    question has a plain rollout beside its templated ones, the evolved side stands alone.
    """
    templated = [r for r in records if r.templated_count]
    both = [r for r in templated if r.plain_count] or templated
    plain = [(r.plain_count, r.plain_correct) for r in both]
    evolved = [(r.templated_count, r.templated_correct) for r in both]
    fewest_plain, fewest_evolved = (min((n for n, _ in side), default=0) for side in (plain, evolved))
    k = min(fewest_plain, fewest_evolved) if fewest_plain > 1 else fewest_evolved
    return {
        "hard_plain_pass_at_1": _mean_pass(plain, 1),
        "hard_plain_pass_at_k": _mean_pass(plain, k),
        "evolved_pass_at_1": _mean_pass(evolved, 1),
        "evolved_pass_at_k": _mean_pass(evolved, k),
        "evolved_k": k or None,
    }


def _mean_pass(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    """Mean Pass@k over questions with (rollouts, correct ones); None where one of them has fewer than k."""
    if not counts or min(n for n, _ in counts) < k:
        return None
    return fmean(pass_at_k(n, c, k) for n, c in counts)
