"""One self-contained HTML page for one run or many: what the paper's figures answer, from the run folders alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from p2o.files import write_atomic
from p2o.reporting.charts import Bar, Line, bar_chart, line_chart, number, score_bar, strip
from p2o.reporting.rollout_log import epoch_files
from p2o.reporting.runs import (
    Estimate,
    Run,
    RunGroup,
    curve,
    differences,
    epoch_curve,
    grouped,
    load_run,
    optional_estimate,
)
from p2o.reporting.samples import Pair, pairs
from p2o.reporting.summary import LEDGER_COUNTS
from p2o.reporting.template_pool import template_texts
from p2o.types import Phase

COLOURS = 8
COUNTED = "Hard questions"
"""The charts under any other heading show rates or rewards, which end at 1."""
HARD = {COUNTED: "hard", "Hard questions without any success": "hard_all_fail"}
AT_K = ("hard_plain_pass_at_k", "evolved_pass_at_k")
"""Rates of one k, the largest, so that a curve has but one: epochs of another are left out."""
SMOOTHED_TO = 15
"""Training reward is averaged so that about this many independent points remain."""
PAIRS = 2
LONGEST = 8000
"""Characters of one answer on the page."""


@dataclass(frozen=True)
class Chart:
    """A drawing under a heading; ``legend`` is (label, colour, dashed)."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int, bool]]


@dataclass(frozen=True)
class Node:
    """A template in the tree of an evolution, with what is drawn beside it."""

    template: Mapping[str, Any]
    bar: Markup
    strip: Markup
    gain: float
    other_parents: Sequence[str]
    children: list[Node]


@dataclass(frozen=True)
class Example:
    """A question answered plainly and under a template."""

    pair: Pair
    template: str
    epoch: int


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write the page of these runs to ``out``, in one step. Runs that differ in their seed alone are one curve.

    Raises :class:`p2o.reporting.runs.ReportError` where a folder is no run's folder.
    """
    write_atomic(out, render([load_run(folder) for folder in run_dirs]))


def render(runs: Sequence[Run]) -> str:
    """The page as HTML: no script, no link to anything outside; whatever a model wrote is escaped."""
    groups = grouped(runs)
    environment = Environment(
        loader=PackageLoader("p2o.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": rate, "number": number, "duration": duration, "cut": cut}
    return environment.get_template("report.html").render(
        title=", ".join(dict.fromkeys(str(run.summary["experiment"]) for run in runs)),
        groups=groups,
        overview=[overview(group) for group in groups],
        learning=learning(groups),
        hard=hard_questions(groups) if len(groups) > 1 else [],
        hard_by_group=[(group, charts) for group in groups if (charts := figure_4(group))],
        examples=[(group, found) for group in groups if (found := examples(group))],
        evolutions=[(run, group, trees) for group in groups for run in group.runs if (trees := evolutions(run))],
        ledger=ledger_chart(groups),
        ledger_rows=ledger_rows(groups),
        phases=[*(phase.value for phase in Phase), "total"],
        differences=differences(groups),
    )


# ---------------------------------------------------------------------- the parts of the page


def overview(group: RunGroup) -> dict[str, Any]:
    """A group's row of the first table, as estimates over its seeds."""
    summaries = [run.summary for run in group.runs]
    return {
        "label": group.label,
        "seeds": ", ".join(str(run.seed) for run in group.runs),
        "status": ", ".join(dict.fromkeys(str(summary["status"]) for summary in summaries)),
        "initial": optional_estimate(summary["val_accuracy"]["initial"] for summary in summaries),
        "best": optional_estimate(summary["val_accuracy"]["best"] for summary in summaries),
        "final": optional_estimate(summary["val_accuracy"]["final"] for summary in summaries),
        "hard": optional_estimate(summary["epochs"][-1]["hard"] for summary in summaries if summary["epochs"]),
        "tokens": optional_estimate(summary["ledger"]["generated_tokens"]["total"] for summary in summaries),
        "seconds": optional_estimate(summary["ledger"]["seconds"]["total"] for summary in summaries),
    }


def learning(groups: Sequence[RunGroup]) -> list[Chart]:
    """Figure 3: reward and accuracy over steps, and accuracy at equal cost."""
    steps = max((int(run.summary["step"]) for group in groups for run in group.runs), default=0)
    window = 2 * (steps // SMOOTHED_TO // 2) + 1
    smoothed = f", mean over {window} rounds" if window > 1 else ""
    tokens = "ledger/generated_tokens_all"
    return _charts(
        _by_group(f"Training reward{smoothed}", "round", groups, "rollout/reward", window=window),
        _by_group("Validation accuracy, plain questions", "round", groups, "validation/accuracy"),
        _by_group("Validation accuracy at equal cost", "tokens generated", groups, "validation/accuracy", x=tokens),
    )


def hard_questions(groups: Sequence[RunGroup]) -> list[Chart]:
    """How many questions are left by epoch, the groups compared."""
    return _charts(
        *(
            Chart(title, line_chart(title, "epoch", lines, whole_x=True), legend(lines))
            for title, field in HARD.items()
            for lines in [[_line(group, i, epoch_curve(group, field)) for i, group in enumerate(groups)]]
        )
    )


def figure_4(group: RunGroup) -> list[Chart]:
    """Figure 4 for one group: Pass@1 and Pass@k of plain and of evolved prompts, and the hard questions."""
    ks = [epoch["evolved_k"] for run in group.runs for epoch in run.summary["epochs"] if epoch.get("evolved_k")]
    k = max(ks) if ks else None
    compared = {"plain": "hard_plain", "evolved": "evolved"}
    curves = {
        "Pass@1, questions under templates": {label: f"{name}_pass_at_1" for label, name in compared.items()},
        f"Pass@{k or 'k'}, questions under templates": {label: f"{name}_pass_at_k" for label, name in compared.items()},
        "Plain prompts, all questions": {
            "Pass@1": "plain_pass_at_1",
            f"Pass@{group.config.get('policy.rollouts', 'K')}": "plain_pass_at_k",
        },
        COUNTED: {"all": "hard", "without any success": "hard_all_fail"},
    }
    charts = []
    for title, fields in curves.items():
        lines = [
            Line(label, epoch_curve(group, field, at=k if field in AT_K else None), i)
            for i, (label, field) in enumerate(fields.items())
        ]
        most = math.inf if title == COUNTED else 1.0
        charts.append(Chart(title, line_chart(title, "epoch", lines, whole_x=True, most=most), legend(lines)))
    return _charts(*charts)


def examples(group: RunGroup) -> list[Example]:
    """Figure 5: the latest questions that a template of the group's first run helped to solve."""
    run = group.runs[0]
    texts = template_texts(run.folder)
    fallback: list[Example] = []
    for epoch in sorted(epoch_files(run.folder / "rollouts"), reverse=True):
        found = [
            Example(pair, texts.get(pair.templated["template_id"], ""), epoch)
            for pair in pairs(run.folder / "rollouts", epoch, PAIRS)
            if pair.plain and pair.templated
        ]
        if found and found[0].pair.helped:
            return [example for example in found if example.pair.helped]
        fallback = fallback or found
    return fallback


def evolutions(run: Run) -> list[tuple[Mapping[str, Any], list[Node]]]:
    """Each prompt phase of a run with its tree of templates."""
    return [(pool, tree(pool)) for pool in run.pools]


def tree(pool: Mapping[str, Any]) -> list[Node]:
    """The templates under their first parents; roots are those whose parents are not of this pool.

    Dev questions are drawn in one order for all templates: those that most templates solve come first.
    """
    templates = pool["pool"]
    solved = {template["id"]: set(template["covers"]) for template in templates}
    order = sorted(pool["dev_ids"], key=lambda dev: (-sum(dev in ids for ids in solved.values()), dev))
    nodes: dict[str, Node] = {}
    roots: list[Node] = []
    for template in templates:
        known = [parent for parent in template["parents"] if parent in nodes]
        node = Node(
            template=template,
            bar=score_bar(template["dev_score"], pool["seed_dev_score"]),
            strip=strip([dev in solved[template["id"]] for dev in order]),
            gain=template["dev_score"] - pool["seed_dev_score"],
            other_parents=known[1:],
            children=[],
        )
        (nodes[known[0]].children if known else roots).append(node)
        nodes[template["id"]] = node
    return roots


def ledger_chart(groups: Sequence[RunGroup]) -> Chart:
    """Generated tokens by phase, a bar a group."""
    phases = [phase.value for phase in Phase]
    bars = [
        Bar(group.label, [(phase, _spent(group, "generated_tokens", phase)) for phase in phases]) for group in groups
    ]
    svg = bar_chart("Tokens generated by phase", bars, phases.index)
    return Chart("Tokens generated by phase", svg, [(phase, i, False) for i, phase in enumerate(phases)])


def ledger_rows(groups: Sequence[RunGroup]) -> Iterator[tuple[str, str, list[float]]]:
    """(group, count, one amount a phase and the total), as means over the seeds; without what an older run lacks."""
    for group in groups:
        for count in (c for c in LEDGER_COUNTS if all(c in run.summary["ledger"] for run in group.runs)):
            yield group.label, count, [_spent(group, count, phase) for phase in (*Phase, "total")]


# ---------------------------------------------------------------------- pieces


def _by_group(
    title: str, x_label: str, groups: Sequence[RunGroup], name: str, *, x: str | None = None, window: int = 1
) -> Chart:
    lines = [_line(group, i, curve(group, name, x=x, window=window)) for i, group in enumerate(groups)]
    return Chart(title, line_chart(title, x_label, lines, most=1.0), legend(lines))


def _line(group: RunGroup, i: int, points: Sequence[Any]) -> Line:
    return Line(group.label, points, i % COLOURS, dashed=group.baseline)


def _charts(*charts: Chart) -> list[Chart]:
    return [chart for chart in charts if chart.svg]


def legend(lines: Sequence[Line]) -> list[tuple[str, int, bool]]:
    return [(line.label, line.style, line.dashed) for line in lines if line.points]


def _spent(group: RunGroup, count: str, phase: str) -> float:
    found = optional_estimate(run.summary["ledger"][count][phase] for run in group.runs)
    return found.mean if found else 0.0


def rate(value: Estimate | float | None) -> str:
    """0.441, 0.441 ± 0.020, or a dash where nothing was measured."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return f"{value.mean:.3f}" + ("" if value.half_width is None else f" ± {value.half_width:.3f}")
    return f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def cut(text: str) -> str:
    rest = len(text) - LONGEST
    return text if rest <= 0 else f"{text[:LONGEST]} … ({rest:,} more characters)"
