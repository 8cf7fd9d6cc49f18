"""Many runs as one table: a row a run, read from the run folders' summaries."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o.files import write_atomic

COLUMNS = (
    "variant",
    "seed",
    "val_accuracy_initial",
    "val_accuracy_best",
    "val_accuracy_final",
    "generated_tokens",
    "trained_tokens",
    "metric_calls",
    "seconds",
    "status",
    "run_dir",
)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The run's summary; None where there is none yet."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_status(run_dir: Path) -> str | None:
    """``running``, ``completed`` or ``stopped``; None for a run that has not begun."""
    summary = read_summary(run_dir)
    return None if summary is None else str(summary["status"])


def write_results(run_dirs: Sequence[Path], table: Path) -> None:
    """Write the table of ``run_dirs`` as CSV; a run without a summary has its folder and status only."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="")
    writer.writeheader()
    for run_dir in run_dirs:
        writer.writerow(_row(run_dir))
    write_atomic(table, buffer.getvalue())


def _row(run_dir: Path) -> dict[str, Any]:
    summary = read_summary(run_dir)
    if summary is None:
        return {"status": "absent", "run_dir": str(run_dir)}
    ledger = summary["ledger"]
    total = {key: ledger[key]["total"] for key in ("generated_tokens", "trained_tokens", "metric_calls")}
    accuracy = {f"val_accuracy_{key}": summary["val_accuracy"][key] for key in ("initial", "best", "final")}
    return {
        "variant": summary["experiment"],
        "seed": summary["seed"],
        **accuracy,
        **total,
        "seconds": round(ledger["seconds"]["total"], 1),
        "status": summary["status"],
        "run_dir": str(run_dir),
    }
