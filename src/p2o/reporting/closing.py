"""The last words of a run: what was learnt, what it cost, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text


def closing_words(summary: Mapping[str, Any], run_dir: Path) -> Text:
    """``summary`` is the value of ``summary.json``."""
    reason = f" ({summary['stop_reason']})" if summary["stop_reason"] else ""
    rates = (f"{at} {'–' if rate is None else f'{rate:.3f}'}" for at, rate in summary["val_accuracy"].items())
    lines = [f"Accuracy on plain held-out questions: {' → '.join(rates)}"]
    if summary["best_templates"]:
        lines.append("Best templates, by the score on their epoch's dev questions:")
    for template in summary["best_templates"]:
        lines.append(f"  {template['dev_score']:.3f}  " + template["text"].replace("\n", "\n         "))
    cost = {count.replace("_", " "): round(phases["total"]) for count, phases in summary["ledger"].items()}
    lines.append("Cost: " + ", ".join(f"{amount:,} {count}" for count, amount in cost.items() if amount))
    lines.append(f"charts   tensorboard --logdir {run_dir / 'tensorboard'}")
    lines += [f"{name:<8} {run_dir / file}" for name, file in (("report", "report.html"), ("summary", "summary.json"))]
    lines.append(f"model    {run_dir / 'model'}")
    head = f"\n{summary['experiment']}, seed {summary['seed']}: {summary['status']}{reason}\n"
    return Text.assemble((head, "bold"), "\n".join(lines))
