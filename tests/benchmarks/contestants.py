"""Contestants whose time and memory are known, run by the harness in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.stopwatch import Stopwatch


def sleeper(watch: Stopwatch, name: str, seconds: float, mib: int, diary: str) -> None:
    """Notes each turn in ``diary``; what it prints may not disturb the harness."""
    loaded = bytearray(32 * 2**20)
    while True:
        watch.begin()
        print("noise")
        held = bytearray(b"x") * (mib * 2**20)
        time.sleep(seconds)
        with Path(diary).open("a") as file:
            file.write(name)
        watch.end(tokens=len(held) // 2**20, loaded=len(loaded))
        del held


def broken(watch: Stopwatch) -> None:
    watch.begin()
    raise ValueError("no such model")


def parent(watch: Stopwatch, mib: int) -> None:
    """Its child holds the memory."""
    code = f"import sys; held = b'x' * ({mib} << 20); print(flush=True); sys.stdin.read()"
    while True:
        watch.begin()
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            watch.end()
