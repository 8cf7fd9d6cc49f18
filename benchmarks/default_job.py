"""The default job, ``python -m p2o.run +experiment=teacher_ref``: seconds and final accuracy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch


def ours(watch: Stopwatch) -> None:
    """The whole command in a process of its own, whose memory is not measured."""
    while True:
        watch.begin()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "p2o.run", "+experiment=teacher_ref", f"run_dir={folder}/run"]
            threads = os.environ["OMP_NUM_THREADS"]
            subprocess.run([*command, "trainer.progress=false", f"trainer.threads={threads}"], check=True)
            summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        watch.end(accuracy=summary["val_accuracy"]["final"])


ROWS = (
    Row(
        "the default job",
        (Contestant("p2o", "benchmarks.default_job:ours"),),
        warm_up=False,
        memory="",
        outcome="accuracy",
    ),
)
