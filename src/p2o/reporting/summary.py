"""``summary.json``: what a run has come to, in one value that a script can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from p2o.algorithm.state import RunState
from p2o.config.schema import Config
from p2o.rollout.ledger import Ledger
from p2o.types import PLAIN

LEDGER_COUNTS = (
    *("prompt_tokens", "generated_tokens", "scored_tokens", "trained_tokens"),
    *("metric_calls", "reflection_calls", "seconds"),
)
BEST_TEMPLATES = 5


def summary(
    state: RunState, config: Config, status: str, templates: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The value of ``summary.json``. ``status`` is running | completed | stopped; accuracies are on plain questions.

    ``templates`` are those of the run's ``pool.json`` files, as JSON values; the best by dev score are named. Scores of
    different epochs come from different hard questions under different policies, so each names its epoch.
    """
    best = state.validation.best
    return {
        "status": status,
        "experiment": config.name,
        "seed": config.seed,
        "step": state.step,
        "stop_reason": state.stop_reason,
        "val_accuracy": {
            "initial": state.validation.initial,
            "best": best[1] if best else None,
            "final": state.validation.final,
        },
        "epochs": state.epochs,
        "ledger": ledger_by_count(state.ledger),
        "best_templates": best_templates(templates),
    }


def ledger_by_count(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Count → phase → amount, and the sum over the phases as ``total``."""
    phases = ledger.to_json()
    return {
        count: {phase: counts[count] for phase, counts in phases.items()}
        | {"total": sum(counts[count] for counts in phases.values())}
        for count in LEDGER_COUNTS
    }


def best_templates(templates: Iterable[Mapping[str, Any]], limit: int = BEST_TEMPLATES) -> list[dict[str, Any]]:
    """The evolved templates of highest dev score, each text once, with the score and the number of questions solved."""
    best: dict[str, Mapping[str, Any]] = {}
    for template in templates:
        known = best.get(template["id"])
        if template["id"] != PLAIN and (known is None or template["dev_score"] > known["dev_score"]):
            best[template["id"]] = template
    ranked = sorted(best.values(), key=lambda template: (-template["dev_score"], template["id"]))
    told = ("id", "epoch", "dev_score", "covers", "text")
    return [{name: one[name] for name in told} | {"covers": len(one["covers"])} for one in ranked[:limit]]
