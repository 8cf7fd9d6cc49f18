"""Contestants whose time and memory are known, run by the harness in processes of their own."""

from __future__ import annotations

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
