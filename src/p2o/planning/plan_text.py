"""Plans as text for a terminal: one run fact by fact, a sweep as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple

from p2o.config.schema import Config
from p2o.planning.footprint import ALWAYS, peak
from p2o.planning.plan import Plan, gib

HEADINGS = ["", "runs", "rounds", "rollouts", "generated", "trained", "reflections", "disk", "gpu", "cpu"]


def render(plan: Plan) -> str:
    """The plan of one run; figures that are bounds say so."""
    config, counts, questions, size = plan.config, plan.counts, plan.questions, plan.size
    facts = {
        "model": f"{config.model.path}, tuning {config.tuning.kind}",
        "parameters": f"{size.parameters:,}" if size else "unknown",
        "trainable": f"{size.trainable:,} ({size.trainable / size.parameters:.2%})" if size else "unknown",
        "questions": f"{questions.train:,} to train on, {questions.val:,} held out "
        f"({'counted' if questions.exact else 'as configured'})",
        "rounds": f"{counts.rounds:,} in {config.trainer.epochs} epochs, {counts.updates:,} updates",
        "validations": f"{counts.validations:,}",
        "prompt phases": f"{counts.prompt_phases:,}, each with a budget of {counts.budget:,} evaluations",
        "template evaluations": f"{counts.metric_calls:,} at most",
        "reflection calls": f"{counts.reflection_calls:,} at most",
    }
    work = {phase.value: one for phase, one in counts.work.items()} | {"total": counts.total}
    rows = [[phase, *(f"{amount:,}" for amount in astuple(one))] for phase, one in work.items()]
    return "\n".join(
        [
            f"Plan of {config.name} at scale {config.scale}, seed {config.seed}. Nothing is started.",
            *("", *(f"{name:22}{value}" for name, value in facts.items())),
            *("", *_aligned([["phase", "rollouts", "prompt tokens ≤", "generated ≤", "trained ≤"], *rows])),
            *_parts(plan),
            *("", *plan.notes),
        ]
    )


def _parts(plan: Plan) -> Iterator[str]:
    for device, capacity in plan.capacity.items():
        if parts := [part for part in plan.parts if part.device == device]:
            yield f"\n{'disk' if device == 'disk' else f'{device} memory'}, estimated from above"
            for part in parts:
                yield f"{gib(part.bytes):>12}  {part.name}{'' if part.when == ALWAYS else f' (during the {part.when})'}"
            has = gib(capacity) if capacity else "none"
            yield f"{gib(peak(parts, device)):>12}  at most at one time; this machine has {has}"


def variants(jobs: Sequence[tuple[Sequence[str], Config]]) -> dict[str, list[Config]]:
    """The runs of a sweep by name, in its order; runs that differ only in their seed share a name.

    ``jobs`` are (overrides, configuration); a name leaves out what all jobs override.
    """
    common = set.intersection(*(set(overrides) for overrides, _ in jobs)) if jobs else set()
    found: dict[str, list[Config]] = {}
    for overrides, config in jobs:
        own = (item for item in overrides if item not in common and not item.startswith("seed="))
        found.setdefault(" ".join(own) or config.name, []).append(config)
    return found


def render_sweep(plans: Mapping[str, tuple[int, Plan]]) -> str:
    """One row per variant (name → its runs and the plan of one), the total, and each note with the rows it concerns."""
    rows, totals = [HEADINGS], []
    told: dict[str, list[str]] = {}
    for i, (name, (runs, plan)) in enumerate(plans.items(), 1):
        work = plan.counts.total
        amounts = [plan.counts.rounds, work.rollouts, work.generated_tokens, work.trained_tokens]
        amounts += [plan.counts.reflection_calls, peak(plan.parts, "disk")]
        memory = (gib(peak(plan.parts, device)) if plan.size else "unknown" for device in ("gpu", "cpu"))
        rows.append([f"{i:>{len(str(len(plans)))}}  {name}", *_cells([runs, *amounts]), *memory])
        totals.append([runs, *(runs * amount for amount in amounts)])
        for note in plan.notes:
            told.setdefault(note, []).append(str(i))
    total = [sum(column) for column in zip(*totals, strict=True)]
    rows.append(["total", *_cells(total), "", ""])  # how many run at a time is up to the launcher
    notes = (
        note if len(concerned) == len(plans) else f"({', '.join(concerned)}) {note}"
        for note, concerned in sorted(told.items(), key=lambda item: item[0].startswith("WARNING"))
    )
    return "\n".join(
        [
            f"Plan of {total[0]} runs. Nothing is started. A row holds the figures of one run; tokens and reflections "
            "are upper bounds, and memory is the most that is taken at one time.",
            *("", *_aligned(rows), "", *notes),
        ]
    )


def _cells(amounts: Sequence[int]) -> list[str]:
    *counts, disk = amounts
    return [*(f"{count:,}" for count in counts), gib(disk) if disk else "unknown"]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
