"""Runs the real command again and again, each time in a fresh process that dies where it is told to.

Imports and composing the configuration take longer than the job, so this process does both once and forks a child for
every life; the child goes on where ``python -m p2o.run`` has them behind it.

Commands come as JSON lines, one reply a line. A command holds ``argv``, ``output`` (a file for what the child says),
``work`` (a file that it adds a line to for every piece of work that it begins), and a way to die: ``strike`` with the
name of a point of :mod:`points`, which ``call`` of it, under which ``step`` and ``stage``, and by which ``signal``
(or ``engine_error``, which is raised there); or ``cpu``, the processor seconds after which SIGKILL comes from
outside; or neither. ``sizes`` is a file for what each round left in memory.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

# Some are imported here for no other reason than that a life would spend seconds on them.
import pandas  # noqa: F401
import points
import questions
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

import p2o.evolution.reflectors.openai  # noqa: F401
from p2o import faults
from p2o.config import Config, load_config, register_schemas
from p2o.launch import launch
from p2o.launcher import register_launcher

TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    register_schemas()
    register_launcher()
    questions.keep_in(os.environ[questions.FOLDER])
    gc.freeze()  # a child that collects garbage would copy every page
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)


@cache
def configuration(overrides: tuple[str, ...]) -> Config:
    with initialize_config_module("p2o.conf", version_base="1.3"):
        return load_config(compose("config", overrides=list(overrides)))


def live(command: dict[str, Any]) -> dict[str, Any]:
    """One life, and how it ended: ``code`` as of a shell (negative = the signal), processor ``seconds``."""
    config = configuration(tuple(command["argv"]))
    child = os.fork()
    if child == 0:
        _child(command, config)
    before = os.times()
    if "cpu" in command:
        _kill_after(child, command["cpu"])
    _, status = os.waitpid(child, 0)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"code": os.waitstatus_to_exitcode(status), "seconds": spent}


def _child(command: dict[str, Any], config: Config) -> None:
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, output), (2, output)):
        os.dup2(source, target)
    code = 1
    try:
        listeners: list[faults.Listener] = [points.Work(Path(command["work"]))]
        if "sizes" in command:
            listeners.append(points.Sizes(Path(command["sizes"])))
        if "strike" in command:
            listeners.append(points.Strike(command))
        faults.listen(lambda point, facts: [listener(point, facts) for listener in listeners] and None)
        launch(config)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _kill_after(child: int, seconds: float) -> None:
    while True:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return
        if (int(fields[11]) + int(fields[12])) / TICKS >= seconds:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.002)


if __name__ == "__main__":
    main()
