"""The table at the end of a run: what was learnt, what it cost, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "title_justify": "left", "show_edge": False}
PHASES = ("policy", "evolution", "reflection", "validation", "total")


def closing_table(summary: Mapping[str, Any], run_dir: Path) -> RenderableType:
    """``summary`` is the value of ``summary.json``."""
    accuracy = summary["val_accuracy"]
    head = Text(f"\n{summary['experiment']}, seed {summary['seed']}: {summary['status']}", style="bold")
    if summary["stop_reason"]:
        head.append(f" ({summary['stop_reason']})")
    learnt = Text(
        "Accuracy on plain held-out questions: "
        + " → ".join(f"{name} {_rate(accuracy[name])}" for name in ("initial", "best", "final"))
    )
    parts: list[RenderableType] = [head, learnt, _epochs(summary), _ledger(summary)]
    if summary["best_templates"]:
        parts.insert(3, _templates(summary))
    return Group(*parts, _where(run_dir))


def _epochs(summary: Mapping[str, Any]) -> Table:
    table = _table("epoch", "reward", "accuracy", "hard", "all wrong", "templates", "best dev", "empty dev")
    for epoch in summary["epochs"]:
        table.add_row(
            str(epoch["epoch"]),
            _rate(epoch["train_reward"]),
            _rate(epoch["val_accuracy"]),
            str(epoch["hard"]),
            str(epoch["hard_all_fail"]),
            str(epoch["templates"]),
            _rate(epoch["templates_best_dev"]),
            _rate(epoch["dev_seed_score"]),
        )
    return table


def _templates(summary: Mapping[str, Any]) -> Table:
    table = Table("dev score", "epoch", "solved", "template", title="Best templates", **STYLE)
    for template in summary["best_templates"]:
        table.add_row(
            _rate(template["dev_score"]), str(template["epoch"]), str(template["covers"]), Text(template["text"])
        )
    return table


def _ledger(summary: Mapping[str, Any]) -> Table:
    table = _table("", *PHASES, title="What it cost")
    for count, phases in summary["ledger"].items():
        table.add_row(count.replace("_", " "), *(f"{round(phases[phase]):,}" for phase in PHASES))
    return table


def _where(run_dir: Path) -> Text:
    places = {
        "charts": f"tensorboard --logdir {run_dir / 'tensorboard'}",
        "report": run_dir / "report.html",
        "summary": run_dir / "summary.json",
        "model": run_dir / "model",
    }
    return Text("\n".join(f"{name:<8} {place}" for name, place in places.items()))


def _table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(title=title, **STYLE)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
