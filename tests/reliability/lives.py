"""Lives of the real command: a process that forks them, and how each ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY = "sk-planted-9f8e7d6c5b4a"
"""The teacher's key of every life; it may turn up nowhere."""
JOB = (
    *("+experiment=teacher_ref", "debug=tiny", "reward=function", "reward.function=lucky.score"),
    *("reward.extract=[whole]", "reward.workers=1", "reward.deadline_s=60", "trainer.threads=1"),
    *("data.train_size=12", "hard_set.tau=4", "gepa.metric_calls=30"),
    *("gepa.temperature=1", "validation.temperature=1", "trainer.progress=false"),
)
"""Two epochs of three rounds and a prompt phase between them, on a random model; luck decides what is right."""


def environment() -> dict[str, str]:
    """One thread, since a process with more cannot be forked; the reward function's folder on the path."""
    path = os.pathsep.join(map(str, (HERE.parent / "end_to_end", HERE.parent, HERE)))
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": path,
        "TEACHER_KEY": KEY,
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class Life:
    """How a process ended: ``code`` as of a shell, negative for a signal; what it said, and what it began to do."""

    code: int
    seconds: float
    said: str
    work: list[str] = field(repr=False)


class Driver:
    """The process that forks the lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lives = 0
        self.seed = 1
        """Of every life that gives no other."""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=folder,
        )
        assert self._reply() == {"ready": True}

    def live(self, run_dir: Path, *overrides: str, job: tuple[str, ...] = JOB, **death: Any) -> Life:
        """Run the command in ``run_dir`` until it ends or dies; ``death`` as :mod:`driver` describes it."""
        self.lives += 1
        output, work = self.folder / f"output-{self.lives}", self.folder / f"work-{self.lives}"
        argv = [*job, f"seed={self.seed}", *overrides, f"run_dir={run_dir}"]
        command = {"argv": argv, "output": str(output), "work": str(work), **death}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        reply = self._reply()
        return Life(**reply, said=output.read_text(), work=work.read_text().splitlines() if work.exists() else [])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the driver ended with {self.process.wait()}"
        return json.loads(line)
