"""What an epoch's records say: the row of the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import Any

from p2o.algorithm.hard_set import Record
from p2o.algorithm.module import Alternation
from p2o.algorithm.state import RunState


@dataclass
class EpochSummary:
    """One row of ``summary.json``: what an epoch did. Rates are in [0, 1], accuracies on plain held-out questions.

    The Pass@k are those of this epoch's training rollouts (Figure 4), by the unbiased estimator, null if there are
    too few rollouts for it. ``plain`` is over all questions with plain rollouts, and at K where all have K.
    ``hard_plain`` and ``evolved`` compare plain and templated rollouts of the same questions; see
    :func:`compared`.
    """

    epoch: int
    step: int
    train_reward: float
    val_accuracy: float | None = None
    hard: int = 0
    hard_all_fail: int = 0
    templates: int = 0
    templates_best_dev: float | None = None
    dev_seed_score: float | None = None
    covered: int = 0
    leaked: int = 0
    plain_pass_at_1: float | None = None
    plain_pass_at_k: float | None = None
    hard_plain_pass_at_1: float | None = None
    hard_plain_pass_at_k: float | None = None
    evolved_pass_at_1: float | None = None
    evolved_pass_at_k: float | None = None
    evolved_k: int | None = None
    """The k of ``hard_plain_pass_at_k`` and ``evolved_pass_at_k``."""
    note: str = ""
    """Why there was no evolution, if there was none."""


def epoch_summary(state: RunState, alternation: Alternation) -> EpochSummary:
    """The epoch's row, read off the records of its rounds and the outcome of its prompt phase."""
    hard, evolution, assignment = alternation.hard, alternation.evolution, alternation.assignment
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
        note=alternation.note,
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
    """Mean Pass@k over questions with (rollouts, correct ones); None if one of them has fewer than k."""
    if not counts or min(n for n, _ in counts) < k:
        return None
    return fmean(pass_at_k(n, c, k) for n, c in counts)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of the n answers, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    This is the unbiased estimate of Pass@k from n >= k answers (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", equation 1). Raises ValueError for a k that n answers cannot estimate.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"Pass@{k} cannot be estimated from {n} answers with {c} correct ones")
    return 1.0 - comb(n - c, k) / comb(n, k)


def epoch_line(epoch: EpochSummary) -> str:
    """An epoch in a line: ``epoch 2  reward 0.41  accuracy 0.44  hard 30 (12 all wrong)  templates 3 (best dev …)``."""
    parts = [f"epoch {epoch.epoch}", f"reward {epoch.train_reward:.2f}"]
    if epoch.val_accuracy is not None:
        parts.append(f"accuracy {epoch.val_accuracy:.3f}")
    parts.append(f"hard {epoch.hard} ({epoch.hard_all_fail} all wrong)")
    if epoch.templates_best_dev is not None:
        parts.append(
            f"templates {epoch.templates} (best dev {epoch.templates_best_dev:.2f}, empty {epoch.dev_seed_score:.2f})"
        )
    return "  ".join(parts) + (f"  [{epoch.note}]" if epoch.note else "")
