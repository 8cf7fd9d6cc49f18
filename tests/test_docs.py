"""Examples of the documents, taken from them as they stand there."""

from __future__ import annotations

import re
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
