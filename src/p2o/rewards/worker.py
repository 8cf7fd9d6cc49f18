"""A grading process: JSON messages in and out. Started by ``process`` as ``python -m p2o.rewards.worker FD``.

The first message holds the settings; each further one is a list of jobs, answered one by one, in order. The process
never imports torch or transformers, prints nothing and ends when its parent hangs up.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from p2o.rewards import sandbox
from p2o.rewards.scorers import Scorer, build_scorer
from p2o.types import Outcome

OUT_OF_MEMORY = 70
"""Exit status of a worker that reached its memory bound."""


def main() -> None:
    sandbox.die_with_parent()
    connection = Connection(int(sys.argv[1]))
    settings = json.loads(connection.recv_bytes())
    try:
        scorer = build_scorer(settings["kind"], settings["function"])
        sandbox.limit_memory(settings["memory_mb"])
        if settings["kind"] != "function":
            sandbox.deny_side_effects()
    except Exception as error:
        _reply(connection, {"error": f"{type(error).__name__}: {error}"})
        return
    _reply(connection, {"ready": True})
    with suppress(EOFError):
        while True:
            for job in json.loads(connection.recv_bytes()):
                _reply(connection, _grade(scorer, job))


def _grade(scorer: Scorer, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        outcome, reward = scorer(job)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # nothing that is left here can be relied on
    except Exception as error:
        return {"outcome": Outcome.UNPARSEABLE, "reward": 0.0, "error": f"{type(error).__name__}: {error}"[:500]}
    return {"outcome": outcome, "reward": reward}


def _reply(connection: Connection, reply: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
