"""What a round, a validation, an evolution and an epoch say in numbers, and how the charts are grouped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean

from p2o.algorithm.advantages import GroupAdvantages, Signal
from p2o.evolution.gepa_phase import Evolution
from p2o.reporting.epoch_summary import EpochSummary
from p2o.reporting.summary import LEDGER_COUNTS
from p2o.rollout.ledger import Ledger
from p2o.types import Outcome, Rollout

Scalars = dict[str, float]

CHARTS = {
    "Does it learn? (Figure 3)": {
        "validation accuracy, plain questions": r"validation/accuracy$",
        "training reward": r"rollout/reward$",
        "success of plain and templated rollouts": r"rollout/success_(plain|templated)$",
    },
    "The hard questions (Figure 4)": {
        "pass@1 of the questions under templates, plain and evolved": r"epoch/(hard_plain|evolved)_pass_at_1$",
        "pass@k of the same (k is epoch/evolved_k)": r"epoch/(hard_plain|evolved)_pass_at_k$",
        "pass@1 and pass@K of plain prompts, all questions": r"epoch/plain_pass_at_(1|k)$",
        "hard questions, and those without any success": r"epoch/hard(_all_fail)?$",
    },
    "The signal": {
        "groups: live, all wrong, all right": r"rollout/(live|all_fail|all_pass)$",
        "outcomes": r"rollout/(correct|wrong|unparseable|timeout)$",
        "tokens clipped and masked": r"policy/(clip|masked)_fraction$",
        "log-probs, engine against trainer": r"(policy/mismatch_(mean|max)|engine/probe_mismatch)$",
    },
    "The templates": {
        "dev score: empty template and best": r"evolution/(seed|best)_dev_score$",
        "templates found and proposals refused": r"evolution/(pool|chosen|refused|leaked)$",
        "proposals refused, by reason": r"evolution/rejected/",
        "failures of the teacher, by kind": r"evolution/failures/",
    },
    "The cost": {
        "generated tokens by phase": r"ledger/generated_tokens/",
        "seconds per round": r"time/",
    },
}
"""Charts of TensorBoard's custom-scalars tab that bring several scalars together, by patterns of their names."""
LAYOUT = {tab: {title: ["Multiline", [names]] for title, names in charts.items()} for tab, charts in CHARTS.items()}


def rollout_scalars(rollouts: Sequence[Rollout]) -> Scalars:
    """Mean reward, share of each outcome, mean length in tokens, share that was cut at the length limit."""
    counts = {outcome: sum(r.grade.outcome is outcome for r in rollouts) for outcome in Outcome}
    return {
        "reward": fmean(r.reward for r in rollouts),
        **{outcome.value: count / len(rollouts) for outcome, count in counts.items()},
        "length": fmean(len(r.tokens) for r in rollouts),
        "truncated": fmean(r.finish_reason == "length" for r in rollouts),
    }


def round_scalars(groups: Sequence[GroupAdvantages]) -> Scalars:
    """One round's rollouts: all together, plain and templated success apart, and how many groups teach anything.

    A group with equal rewards has no advantage (equation 3); ``all_fail`` and ``all_pass`` are those of them in which
    no answer, or every answer, is correct.
    """
    rollouts = [rollout for scored in groups for rollout in scored.group.rollouts]
    plain = [rollout.correct for rollout in rollouts if rollout.plain]
    templated = [rollout.correct for rollout in rollouts if not rollout.plain]
    dead = [scored.group for scored in groups if scored.signal is not Signal.LIVE]
    scalars = rollout_scalars(rollouts) | {
        "groups_templated": sum(scored.group.templated for scored in groups),
        "live": len(groups) - len(dead),
        "all_fail": sum(not any(rollout.correct for rollout in group.rollouts) for group in dead),
        "all_pass": sum(all(rollout.correct for rollout in group.rollouts) for group in dead),
    }
    if plain:
        scalars["success_plain"] = fmean(plain)
    if templated:
        scalars["success_templated"] = fmean(templated)
    return scalars


def evolution_scalars(evolution: Evolution, chosen: int) -> Scalars:
    """``chosen`` is the number of templates that the next epoch will use; kinds that did not occur are left out."""
    return {
        "seed_dev_score": evolution.seed_dev_score,
        "best_dev_score": max(template.dev_score for template in evolution.pool),
        "pool": len(evolution.pool),
        "chosen": chosen,
        "solved": len(frozenset().union(*(template.covers for template in evolution.pool))),
        "dev": len(evolution.dev_ids),
        "metric_calls": evolution.metric_calls,
        "reflection_calls": evolution.reflection_calls,
        "refused": sum(evolution.rejected.values()),
        "leaked": evolution.leaked,
        **under("rejected", evolution.rejected),
        **under("failures", evolution.failures),
    }


def epoch_scalars(summary: EpochSummary) -> Scalars:
    """The numbers of an epoch's summary; what was not measured is left out."""
    values = dataclasses.asdict(summary)
    return {name: n for name, n in values.items() if name not in ("epoch", "step") and isinstance(n, int | float)}


def ledger_scalars(ledger: Ledger) -> Scalars:
    """Running sums: tokens by phase and in all."""
    total = ledger.totals()
    return {
        **{f"generated_tokens/{phase}": counts["generated_tokens"] for phase, counts in ledger.to_json().items()},
        **{f"{count}_all": getattr(total, count) for count in LEDGER_COUNTS if count != "seconds"},
    }


def under(group: str, scalars: Mapping[str, float]) -> Scalars:
    """The same numbers, named ``group/name``."""
    return {f"{group}/{name}": value for name, value in scalars.items()}
