"""Examples of the documents, taken from them as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from p2o.config.schema import RewardConfig
from p2o.rewards import GraderPool
from p2o.types import Outcome, Problem

BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
EXTEND = Path(__file__).parents[1] / "docs" / "extend.md"


def test_the_reward_of_extend_md_scores_what_is_in_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = dict(BLOCK.findall(EXTEND.read_text()))
    (tmp_path / "my_reward.py").write_text(examples["my_reward.py"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with GraderPool(RewardConfig(**yaml.safe_load(examples["conf/reward/half.yaml"]))) as pool:
        texts = [r"7 and 5 make \boxed{12}", "so it is 13", "no idea"]
        grades = pool.grade_many([(Problem("p", "How much is 7 plus 5?", "12"), text) for text in texts])
    assert [(grade.outcome, grade.reward) for grade in grades] == [
        (Outcome.CORRECT, 1.0),
        (Outcome.WRONG, 0.5),
        (Outcome.UNPARSEABLE, 0.0),
    ]


def test_every_part_of_extend_md_works_together(tmp_path: Path) -> None:
    """The command at the top of the document, with the files that it shows, on the tiny model.

    It may take longer than 30 s: it starts the command as a reader does, with all its imports.
    """
    text = EXTEND.read_text()
    for name, content in BLOCK.findall(text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (command,) = (part for part in text.split("\n\n") if "--config-dir conf debug=tiny" in part)
    words = shlex.split(command.replace("\\\n", " "))
    arguments = words[words.index("p2o.run") + 1 :]
    run = subprocess.run(
        [sys.executable, "-m", "p2o.run", *arguments, "run_dir=run", "trainer.threads=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "prompts at temperature 0.6" in run.stdout, "the engine"
    assert re.search(r"step 0: 0\.\d+ of 8 answers", run.stdout), "the callback"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("policy/push_down" in row for row in rows), "the loss's own metric"
    pool = json.loads((tmp_path / "run" / "evolution" / "epoch-000" / "pool.json").read_text())
    assert pool["reflection_calls"] > 0, "the reflector"
