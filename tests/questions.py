"""Questions of reasoning-gym, made once for all tests.

The process that makes them spends four seconds on its imports, and most tests ask for the same ones.
``tests/tasks/test_gym_questions.py`` asks the process itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from p2o.tasks import gym

FOLDER = "P2O_TEST_QUESTIONS"
"""The environment variable that tells other processes of the tests where the questions are kept."""


def keep_in(folder: str | Path) -> None:
    """From now on, what this process was given once, or another process of the tests, comes from ``folder``."""
    make = gym.make_questions

    @wraps(make)
    def remembered(data: Mapping[str, Any]) -> dict[str, Any]:
        name = hashlib.sha256(json.dumps(data).encode()).hexdigest()
        file = Path(folder) / f"{name}.json"
        if not file.exists():
            draft = file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(make(data)), encoding="utf-8")
            draft.replace(file)  # others may read it, and this process may be killed
        return json.loads(file.read_text(encoding="utf-8"))

    gym.make_questions = remembered
