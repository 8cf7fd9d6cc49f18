"""A grading process: JSON lines in, JSON lines out. Started by ``pool`` as ``python -m p2o.rewards.worker``.

The first line is the configuration; each further line is a list of jobs, answered one line a job, in order. The
process never imports torch or transformers, prints nothing and ends with its input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from p2o.rewards import sandbox
from p2o.rewards.scorers import Scorer, build_scorer
from p2o.types import Outcome

OUT_OF_MEMORY = 70
"""Exit status of a worker that reached its memory bound."""


def main() -> None:
    sandbox.die_with_parent()
    requests, replies = _take_over_streams()
    config = json.loads(requests.readline())
    try:
        scorer = build_scorer(config["kind"], config["function"])
        sandbox.limit_memory(config["memory_mb"])
        if config["kind"] != "function":
            sandbox.deny_side_effects()
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _reply(replies, {"ready": True})
    for line in requests:
        for job in json.loads(line):
            _reply(replies, _grade(scorer, job))


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the parent, moved away from where a reward function's ``print`` or ``input`` would reach them."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    return requests, replies


def _grade(scorer: Scorer, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        outcome, reward = scorer(job)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # nothing that still lives here can be relied on
    except Exception as error:
        return {"outcome": Outcome.UNPARSEABLE, "reward": 0.0, "error": f"{type(error).__name__}: {error}"[:500]}
    return {"outcome": outcome, "reward": reward}


def _reply(replies: BinaryIO, reply: Mapping[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
