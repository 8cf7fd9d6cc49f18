"""A plan as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from p2o.planning.memory import ALWAYS, Part, peak
from p2o.planning.plan import Plan, gib

PHASES = ("policy", "evolution", "reflection", "validation", "total")


def render(plan: Plan) -> str:
    """The plan, a fact a line. Figures that are bounds are marked so."""
    return "\n".join(
        [
            f"Plan of {plan.config.name} at scale {plan.config.scale}, seed {plan.config.seed}. Nothing is started.",
            *_model(plan),
            *_work(plan),
            *_parts("Memory, an estimate from above", plan),
            *_time(plan),
            *(f"Note: {note}" for note in plan.notes),
            *(f"WARNING: {warning}" for warning in plan.warnings),
        ]
    )


def _model(plan: Plan) -> Iterator[str]:
    yield ""
    yield f"Model {plan.config.model.path}, tuning {plan.config.tuning.kind}"
    if plan.size is None:
        yield "  parameters           unknown"
        return
    size = plan.size
    yield f"  parameters           {size.parameters:,}"
    yield f"  trainable            {size.trainable:,} ({size.trainable / size.parameters:.2%})"


def _work(plan: Plan) -> Iterator[str]:
    counts, config = plan.counts, plan.config
    origin = "counted" if plan.questions.exact else "as configured"
    yield ""
    yield "Work"
    yield f"  questions            {plan.questions.train:,} to train on, {plan.questions.val:,} held out ({origin})"
    yield f"  rounds               {counts.rounds:,} in {config.trainer.epochs} epochs, {counts.updates:,} updates"
    yield f"  validations          {counts.validations:,}"
    yield f"  prompt phases        {counts.prompt_phases:,}, each with a budget of {counts.budget:,} evaluations"
    yield f"  template evaluations {counts.metric_calls:,} at most"
    yield f"  reflection calls     {counts.reflection_calls:,} at most"
    yield f"  {'':20} {'rollouts':>12} {'prompt tokens ≤':>18} {'generated ≤':>18} {'trained ≤':>18}"
    for name in PHASES:
        work = getattr(counts, name)
        yield (
            f"  {name:20} {work.rollouts:12,} {work.prompt_tokens:18,} {work.generated_tokens:18,} "
            f"{work.trained_tokens:18,}"
        )


def _parts(title: str, plan: Plan) -> Iterator[str]:
    for device in ("gpu", "cpu", "disk"):
        parts = [part for part in (*plan.memory, *plan.disk) if part.device == device]
        if not parts:
            continue
        there = plan.capacity[device]
        yield ""
        yield f"{'Disk' if device == 'disk' else f'{title}: {device}'}"
        yield from (f"  {gib(part.bytes):>12}  {part.name}{_when(part)}" for part in parts)
        most, has = gib(peak(parts, device)), gib(there) if there else "none"
        yield f"  {most:>12}  at the most at one time; this machine has {has}"


def _when(part: Part) -> str:
    return "" if part.when == ALWAYS else f" (during the {part.when})"


def _time(plan: Plan) -> Iterator[str]:
    if plan.pace is None:
        return
    pace, seconds = plan.pace, plan.pace.seconds(plan.counts)
    yield ""
    yield f"Time: about {duration(seconds)} on this machine, where the hard sets are as large as they can be"
    length = f"{pace.tokens_per_rollout:.0f} tokens a rollout ({'the limit' if pace.cut else 'measured'})"
    yield (
        f"  measured: {1 / pace.per_generated_token:,.0f} generated and {1 / pace.per_trained_token:,.0f} trained "
        f"tokens a second, {length}, {pace.sync:.2f} s to hand weights over"
    )


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
