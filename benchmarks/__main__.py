"""``python -m benchmarks [WORDS ...]``: measure the rows whose names contain one of the words (all without any)."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import default_job, grading, grpo_step, policy_loss, rollouts, template_evaluation
from benchmarks.harness import Result, Row, measure, table
from benchmarks.subject import MODEL_VARIABLE
from p2o.environment import processor

PACKAGES = ("torch", "transformers", "peft", "trl", "gepa", "math-verify")


def main() -> None:
    options = _options()
    rows = [
        *grpo_step.ROWS,
        *rollouts.rows(options.vllm_python),
        *policy_loss.ROWS,
        *template_evaluation.ROWS,
        *grading.rows(options.answers),
        *default_job.ROWS,
    ]
    chosen = [row for row in rows if not options.words or any(word in row.name for word in options.words)]
    if not chosen:
        sys.exit("no row has such a name; there are: " + "; ".join(row.name for row in rows))
    if options.model:
        os.environ[MODEL_VARIABLE] = options.model
    measured: list[tuple[Row, Sequence[Result]]] = []
    for row in chosen:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        if options.runs is not None:
            row = replace(row, runs=options.runs)
        measured.append((row, measure(row, threads=options.threads, realtime=options.realtime)))
        if options.json:
            _append(options.json, measured[-1:])
    print(f"{_machine(options.threads)}\n\n{table(measured)}")
    errors = [f"{row.name}: {result.error}" for row, results in measured for result in results if result.error]
    sys.exit("\n".join(errors) if errors else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("words", nargs="*", help="measure only rows whose names contain one of these")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of every contestant")
    parser.add_argument("--runs", type=int, help="measurements of each contestant, instead of 5")
    parser.add_argument("--model", help="folder or hub id of another model than the default job's, e.g. for a GPU")
    parser.add_argument("--answers", help="file of answers to grade, instead of made ones")
    parser.add_argument("--vllm-python", help="interpreter of an environment with p2o and vLLM")
    parser.add_argument("--json", type=Path, help="file that every measurement is appended to")
    parser.add_argument(
        "--realtime", action="store_true", help="on a busy machine: measured work runs before all else (needs root)"
    )
    return parser.parse_args()


def _machine(threads: int) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{when}, {machine}, {threads} threads, Python {platform.python_version()}, {versions}"


def _append(path: Path, measured: Sequence[tuple[Row, Sequence[Result]]]) -> None:
    with path.open("a") as file:
        for row, results in measured:
            value = {"row": row.name, "results": [asdict(result) for result in results]}
            file.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
