"""What a grading process may not do: outlive its parent, take more memory than its share, act on the machine.

The parent enforces the deadline (``pool``). These are second walls: text is only ever parsed, never run.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType
from typing import Any

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_ACTIONS = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.")
_LOOKING = ("os.listdir", "os.scandir", "os.walk")
_BUILTINS = frozenset(dir(builtins))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux; elsewhere its input ends it)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def limit_memory(megabytes: int) -> None:
    """Bound the address space to what is mapped now plus ``megabytes``; leave no core files."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        limit = mapped + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def deny_side_effects() -> None:
    """From now on refuse to start processes, open connections, write files and run text as a program, for good.

    SymPy itself evaluates strings such as ``Integer (2 )``. That is allowed; but text that names a builtin or
    anything with a leading underscore, the way out of every expression, raises before it runs.
    """

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            denied = bool(args[2] & _WRITING)
        elif event == "exec":
            denied = args[0].co_filename == "<string>" and _is_program(args[0])
        else:
            denied = event.startswith(_ACTIONS) and event not in _LOOKING
        if denied:
            raise PermissionError(f"{event} is not allowed while answers are graded")

    sys.addaudithook(refuse)


def _is_program(code: CodeType) -> bool:
    if any(name in _BUILTINS or name.startswith("_") for name in code.co_names):
        return True
    return any(isinstance(constant, CodeType) and _is_program(constant) for constant in code.co_consts)
