"""The templates of a run on disk: ``evolution/epoch-000/pool.json`` and ``assignment.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2o.evolution.gepa_phase import Evolution
from p2o.files import write_json
from p2o.types import Assignment


def write_pool(run_dir: Path, epoch: int, step: int, evolution: Evolution, assignment: Assignment) -> dict[str, Any]:
    """Write what an evolution found and what the next epoch makes of it; returns the value of ``pool.json``.

    Each template has its text, parents, dev score, the dev questions that it solved, whether the cover chose it and
    how many rollouts of the next epoch use it.
    """
    uses = Counter(template for ids in assignment.by_problem.values() for template in ids)
    value = evolution.to_json()
    for template in value["pool"]:
        template |= {"chosen": template["id"] in assignment.templates, "uses": uses[template["id"]]}
    value |= {"epoch": epoch, "step": step}
    folder = run_dir / "evolution" / f"epoch-{epoch:03d}"
    write_json(folder / "pool.json", value)
    write_json(folder / "assignment.json", assignment.to_json())
    return value


def rewind_pools(run_dir: Path, epoch: int) -> None:
    """Forget what the prompt phases of ``epoch`` and later wrote; they are still to come."""
    for name in ("pool.json", "assignment.json"):
        for path in (run_dir / "evolution").glob(f"epoch-*/{name}"):
            if int(path.parent.name.removeprefix("epoch-")) >= epoch:
                path.unlink()


def read_pools(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The values of the run's ``pool.json`` files, by epoch."""
    for path in sorted((run_dir / "evolution").glob("epoch-*/pool.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def template_texts(run_dir: Path) -> dict[str, str]:
    """Template id → text, of every template that the run found."""
    return {template["id"]: template["text"] for pool in read_pools(run_dir) for template in pool["pool"]}
