"""One self-contained HTML page for one run or many: what the paper's figures answer, from the run folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from p2o.files import write_atomic
from p2o.reporting.charts import Chart, Line, line_chart, number
from p2o.reporting.rollout_log import epoch_files
from p2o.reporting.runs import (
    Estimate,
    Point,
    Run,
    RunGroup,
    curve,
    differences,
    epoch_curve,
    estimate,
    grouped,
    load_run,
    optional_estimate,
)
from p2o.reporting.samples import Pair, pairs
from p2o.reporting.summary import LEDGER_COUNTS
from p2o.reporting.template_pool import template_texts
from p2o.types import Phase

COLOURS = 8
PHASES = (*(phase.value for phase in Phase), "total")
SMOOTHED_TO = 15
"""Training reward is averaged so that about this many independent points remain."""
PAIRS = 2
LONGEST = 8000
"""Characters of one answer on the page."""


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write the page of these runs to ``out``, in one step. Runs that differ in their seed alone are one curve.

    Raises :class:`p2o.reporting.runs.ReportError` if a folder is not a run's folder.
    """
    write_atomic(out, render([load_run(folder) for folder in run_dirs]))


def render(runs: Sequence[Run]) -> str:
    """The page as HTML: no script, no link to anything outside; whatever a model wrote is escaped."""
    groups = grouped(runs)
    ledger = ledger_rows(groups)
    bars = [(label, amounts) for label, count, amounts in ledger if count == "generated_tokens"]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=", ".join(dict.fromkeys(str(run.summary["experiment"]) for run in runs)),
            groups=groups,
            overview=[overview(group) for group in groups],
            learning=learning(groups),
            hard=hard_questions(groups) if len(groups) > 1 else [],
            hard_by_group=[(group, charts) for group in groups if (charts := figure_4(group))],
            examples=[(group, found) for group in groups if (found := examples(group))],
            evolutions=[
                (run, group, [(pool, tree(pool)) for pool in run.pools])
                for group in groups
                for run in group.runs
                if run.pools
            ],
            bars=bars if any(amounts[-1] for _, amounts in bars) else [],
            ledger=ledger,
            phases=PHASES,
            differences=differences(groups),
        )
    )


def environment() -> Environment:
    """The templates of ``page/`` with their filters."""
    found = Environment(
        loader=PackageLoader("p2o.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"rate": rate, "number": number, "duration": duration, "cut": cut}
    return found


# ---------------------------------------------------------------------- the parts of the page


def overview(group: RunGroup) -> dict[str, Any]:
    """A group's row of the first table, as estimates over its seeds."""
    summaries = [run.summary for run in group.runs]
    totals = {"tokens": "generated_tokens", "seconds": "seconds"}
    return {
        "label": group.label,
        "seeds": ", ".join(str(run.seed) for run in group.runs),
        "status": ", ".join(dict.fromkeys(str(summary["status"]) for summary in summaries)),
        "hard": optional_estimate(summary["epochs"][-1]["hard"] for summary in summaries if summary["epochs"]),
        **{at: optional_estimate(one["val_accuracy"][at] for one in summaries) for at in ("initial", "best", "final")},
        **{name: estimate([one["ledger"][count]["total"] for one in summaries]) for name, count in totals.items()},
    }


def learning(groups: Sequence[RunGroup]) -> list[Chart]:
    """Figure 3: reward and accuracy over steps, and accuracy at equal cost."""
    steps = max((int(run.summary["step"]) for group in groups for run in group.runs), default=0)
    window = 2 * (steps // SMOOTHED_TO // 2) + 1
    smoothed = f", mean over {window} rounds" if window > 1 else ""
    tokens, accuracy = "ledger/generated_tokens_all", "validation/accuracy"
    reward = [curve(group, "rollout/reward", window=window) for group in groups]
    by_round, by_tokens = ([curve(group, accuracy, x=x) for group in groups] for x in (None, tokens))
    return _drawn(
        line_chart(f"Training reward{smoothed}", "round", _lines(groups, reward), most=1.0),
        line_chart("Validation accuracy, plain questions", "round", _lines(groups, by_round), most=1.0),
        line_chart("Validation accuracy at equal cost", "tokens generated", _lines(groups, by_tokens), most=1.0),
    )


def hard_questions(groups: Sequence[RunGroup]) -> list[Chart]:
    """How many questions are left by epoch, the groups compared."""
    hard, hopeless = ([epoch_curve(group, field) for group in groups] for field in ("hard", "hard_all_fail"))
    return _drawn(
        line_chart("Hard questions", "epoch", _lines(groups, hard), whole_x=True),
        line_chart("Hard questions without any success", "epoch", _lines(groups, hopeless), whole_x=True),
    )


def figure_4(group: RunGroup) -> list[Chart]:
    """Figure 4 for one group: Pass@1 and Pass@k of plain and of evolved prompts, and the hard questions.

    A curve of Pass@k has one k, the largest; epochs with another k are left out.
    """
    k = max((epoch.get("evolved_k") or 0 for run in group.runs for epoch in run.summary["epochs"]), default=0) or None

    def lines(fields: Mapping[str, str], *, at: int | None = None) -> list[Line]:
        return [Line(label, epoch_curve(group, field, at=at), i) for i, (label, field) in enumerate(fields.items())]

    def rates(title: str, fields: Mapping[str, str], *, at: int | None = None) -> Chart | None:
        return line_chart(title, "epoch", lines(fields, at=at), whole_x=True, most=1.0)

    at_1 = {"plain": "hard_plain_pass_at_1", "evolved": "evolved_pass_at_1"}
    at_k = {"plain": "hard_plain_pass_at_k", "evolved": "evolved_pass_at_k"}
    plain = {"Pass@1": "plain_pass_at_1", f"Pass@{group.config.get('policy.rollouts', 'K')}": "plain_pass_at_k"}
    hard = {"all": "hard", "without any success": "hard_all_fail"}
    return _drawn(
        rates("Pass@1, questions under templates", at_1),
        rates(f"Pass@{k or 'k'}, questions under templates", at_k, at=k),
        rates("Plain prompts, all questions", plain),
        line_chart("Hard questions", "epoch", lines(hard), whole_x=True),
    )


def examples(group: RunGroup) -> list[tuple[Pair, str, int]]:
    """Figure 5: the latest questions that a template of the group's first run helped to solve, each with the template's
    text and the epoch."""
    run = group.runs[0]
    texts = template_texts(run.folder)
    fallback: list[tuple[Pair, str, int]] = []
    for epoch in sorted(epoch_files(run.folder / "rollouts"), reverse=True):
        found = [
            (pair, texts.get(pair.templated["template_id"], ""), epoch)
            for pair in pairs(run.folder / "rollouts", epoch, PAIRS)
            if pair.plain and pair.templated
        ]
        if helped := [example for example in found if example[0].helped]:
            return helped
        fallback = fallback or found
    return fallback


def tree(pool: Mapping[str, Any]) -> dict[str | None, list[Mapping[str, Any]]]:
    """The templates by their first parent; by None those whose parents are not of this pool.

    ``solved`` has one entry per dev question, in the same order for every template: the questions that most
    templates solve come first.
    """
    covers = [set(template["covers"]) for template in pool["pool"]]
    order = sorted(pool["dev_ids"], key=lambda dev: (-sum(dev in ids for ids in covers), dev))
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for template, ids in zip(pool["pool"], covers, strict=True):
        first, *others = [parent for parent in template["parents"] if parent in seen] or [None]
        node = {**template, "solved": [dev in ids for dev in order], "other_parents": others}
        children.setdefault(first, []).append(node)
        seen.add(template["id"])
    return children


def ledger_rows(groups: Sequence[RunGroup]) -> list[tuple[str, str, list[float]]]:
    """(group, count, one amount per phase and the total), as means over the seeds; an older run may lack a count."""
    return [
        (group.label, count, [fmean(run.summary["ledger"][count][phase] for run in group.runs) for phase in PHASES])
        for group in groups
        for count in LEDGER_COUNTS
        if all(count in run.summary["ledger"] for run in group.runs)
    ]


# ---------------------------------------------------------------------- pieces


def _lines(groups: Sequence[RunGroup], curves: Sequence[Sequence[Point]]) -> list[Line]:
    return [
        Line(group.label, points, i % COLOURS, dashed=group.baseline)
        for i, (group, points) in enumerate(zip(groups, curves, strict=True))
    ]


def _drawn(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def rate(value: Estimate | float | None) -> str:
    """0.441, 0.441 ± 0.020, or a dash if nothing was measured."""
    if value is None:
        return "–"
    known = value if isinstance(value, Estimate) else Estimate(value)
    return f"{known.mean:.3f}" + ("" if known.half_width is None else f" ± {known.half_width:.3f}")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def cut(text: str) -> str:
    rest = len(text) - LONGEST
    return text if rest <= 0 else f"{text[:LONGEST]} … ({rest:,} more characters)"
