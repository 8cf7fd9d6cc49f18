"""Many runs as one table: a row a run, read from the run folders' summaries.

Tokens and metric calls are those of the policy and the prompt phase, reflection included; validation is left out, since
every run pays the same for it. Seconds are those of all phases.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o.files import write_atomic
from p2o.types import Phase

COLUMNS = (
    *("variant", "seed", "val_accuracy_initial", "val_accuracy_best", "val_accuracy_final"),
    *("generated_tokens", "trained_tokens", "metric_calls", "seconds", "status", "run_dir"),
)
PAID = tuple(phase.value for phase in Phase if phase is not Phase.VALIDATION)
"""Phases whose cost is counted."""


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The run's summary; None where there is none yet."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_status(run_dir: Path) -> str | None:
    """``running``, ``completed`` or ``stopped``; None for a run that has not begun."""
    summary = read_summary(run_dir)
    return None if summary is None else str(summary["status"])


def paid(ledger: Mapping[str, Mapping[str, float]], count: str) -> float:
    """A summary's count over all phases but validation."""
    return sum(amount for phase, amount in ledger[count].items() if phase in PAID)


def write_results(runs: Sequence[tuple[Path, Sequence[str]]], table: Path) -> None:
    """Write the table of ``runs``, (folder, overrides) each, as CSV.

    What not all runs override alike has a column, named by its key (``model.leak``). A run without a summary has these,
    its folder and its status only.
    """
    given = [dict(item.lstrip("+~").split("=", 1) for item in overrides if "=" in item) for _, overrides in runs]
    keys = dict.fromkeys(key for one in given for key in one if key not in ("experiment", "seed"))
    swept = [key for key in keys if len({one.get(key) for one in given}) > 1]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS[:2], *swept, *COLUMNS[2:]], restval="")
    writer.writeheader()
    for (run_dir, _), one in zip(runs, given, strict=True):
        writer.writerow({key: one[key] for key in swept if key in one} | _row(run_dir))
    write_atomic(table, buffer.getvalue())


def _row(run_dir: Path) -> dict[str, Any]:
    summary = read_summary(run_dir)
    if summary is None:
        return {"status": "absent", "run_dir": str(run_dir)}
    ledger = summary["ledger"]
    accuracy = {f"val_accuracy_{key}": summary["val_accuracy"][key] for key in ("initial", "best", "final")}
    return {
        "variant": summary["experiment"],
        "seed": summary["seed"],
        **accuracy,
        **{count: paid(ledger, count) for count in ("generated_tokens", "trained_tokens", "metric_calls")},
        "seconds": round(ledger["seconds"]["total"], 1),
        "status": summary["status"],
        "run_dir": str(run_dir),
    }
