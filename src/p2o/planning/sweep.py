"""The plans of a sweep's runs as one table: what each of its rows takes, and what they have in common told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from p2o.config.schema import Config
from p2o.planning.memory import peak
from p2o.planning.plan import Plan, gib
from p2o.planning.render import duration

HEADINGS = ("runs", "rounds", "rollouts", "generated", "trained", "reflections", "gpu", "cpu", "disk", "time")
MILLION = 1e6
UNKNOWN = "–"


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone, and so are planned once."""

    name: str
    config: Config
    """That of the first of them."""
    runs: int


def variants(jobs: Sequence[tuple[Sequence[str], Config]]) -> list[Variant]:
    """In the order of the sweep. ``jobs`` are (overrides, configuration); what all jobs override names none."""
    common = set.intersection(*(set(overrides) for overrides, _ in jobs)) if jobs else set()
    found: dict[str, Variant] = {}
    for overrides, config in jobs:
        own = (item for item in overrides if item not in common and not item.startswith("seed="))
        name = " ".join(own) or config.name
        runs = found[name].runs if name in found else 0
        found[name] = Variant(name, found[name].config if runs else config, runs + 1)
    return list(found.values())


def render_sweep(plans: Sequence[tuple[Variant, Plan]]) -> str:
    """A row a variant, the total of all runs, and each note and warning once, with the rows that it concerns."""
    runs = sum(variant.runs for variant, _ in plans)
    return "\n".join(
        [
            f"Plan of {runs} runs. Nothing is started. A row holds the figures of one run; tokens and reflections are "
            "bounds from above, and memory what is taken at the most at one time.",
            "",
            *_table(plans),
            "",
            *_told("Note", plans, lambda plan: plan.notes),
            *_told("WARNING", plans, lambda plan: plan.warnings),
        ]
    )


def _table(plans: Sequence[tuple[Variant, Plan]]) -> Iterator[str]:
    rows = [["", *HEADINGS], *_rows(plans), _total(plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS) + 1)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells])


def _rows(plans: Sequence[tuple[Variant, Plan]]) -> Iterator[list[str]]:
    for number, (variant, plan) in enumerate(plans, 1):
        yield [f"{number:>{len(str(len(plans)))}}  {variant.name}", *_cells(variant, plan)]


def _cells(variant: Variant, plan: Plan) -> list[str]:
    counts, total = plan.counts, plan.counts.total
    memory = [gib(peak(plan.memory, device)) if plan.size else UNKNOWN for device in ("gpu", "cpu")]
    return [
        str(variant.runs),
        f"{counts.rounds:,}",
        *_work(total.rollouts, total.generated_tokens, total.trained_tokens, counts.reflection_calls),
        *memory,
        gib(peak(plan.disk, "disk")) if plan.size else UNKNOWN,
        duration(plan.pace.seconds(counts)) if plan.pace else UNKNOWN,
    ]


def _total(plans: Sequence[tuple[Variant, Plan]]) -> list[str]:
    """Of all runs. Memory is not added up: how many run at a time is the launcher's affair."""

    def added(value: Callable[[Plan], float]) -> float:
        return sum(variant.runs * value(plan) for variant, plan in plans)

    return [
        "total",
        f"{sum(variant.runs for variant, _ in plans)}",
        f"{added(lambda plan: plan.counts.rounds):,}",
        *_work(
            added(lambda plan: plan.counts.total.rollouts),
            added(lambda plan: plan.counts.total.generated_tokens),
            added(lambda plan: plan.counts.total.trained_tokens),
            added(lambda plan: plan.counts.reflection_calls),
        ),
        "",
        "",
        gib(int(added(lambda plan: peak(plan.disk, "disk")))) if all(plan.size for _, plan in plans) else UNKNOWN,
        UNKNOWN if any(plan.pace is None for _, plan in plans) else duration(added(_seconds)),
    ]


def _seconds(plan: Plan) -> float:
    assert plan.pace is not None
    return plan.pace.seconds(plan.counts)


def _work(rollouts: float, generated: float, trained: float, reflections: float) -> list[str]:
    return [f"{rollouts:,}", f"{generated / MILLION:,.1f} M", f"{trained / MILLION:,.1f} M", f"{reflections:,}"]


def _told(kind: str, plans: Sequence[tuple[Variant, Plan]], said: Callable[[Plan], Sequence[str]]) -> Iterator[str]:
    concerned: dict[str, list[str]] = {}
    for number, (_, plan) in enumerate(plans, 1):
        for line in said(plan):
            concerned.setdefault(line, []).append(str(number))
    for line, rows in concerned.items():
        yield f"{kind}: {line}" if len(rows) == len(plans) else f"{kind} (of {', '.join(rows)}): {line}"
