"""What an epoch's records say: the row of the summary."""

from __future__ import annotations

from collections.abc import Iterable

from p2o.evolution.gepa_phase import Evolution
from p2o.evolution.hard_set import HardSet
from p2o.training.state import EpochSummary, RunState
from p2o.types import Assignment


def epoch_summary(
    state: RunState, hard: HardSet, evolution: Evolution | None, assignment: Assignment, note: str
) -> EpochSummary:
    """The epoch's row, read off the records of its rounds and the outcome of its prompt phase."""
    records = list(state.records.values())
    plain_1, plain_k = _pass_rates((r.plain_correct, r.plain_count) for r in records)
    evolved_1, evolved_k = _pass_rates((r.templated_correct, r.templated_count) for r in records)
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
        plain_pass_at_1=plain_1,
        plain_pass_at_k=plain_k,
        evolved_pass_at_1=evolved_1,
        evolved_pass_at_k=evolved_k,
        note=note,
    )


def _pass_rates(counts: Iterable[tuple[int, int]]) -> tuple[float | None, float | None]:
    """Mean success of one rollout, and share of questions with any success, over the questions with rollouts."""
    pairs = [(correct, count) for correct, count in counts if count > 0]
    if not pairs:
        return None, None
    pass_at_1 = sum(correct / count for correct, count in pairs) / len(pairs)
    return pass_at_1, sum(correct > 0 for correct, _ in pairs) / len(pairs)
