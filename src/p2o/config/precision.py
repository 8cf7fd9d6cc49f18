"""``${native_dtype:gpu|cpu}`` in a YAML file: the arithmetic that a machine is fast at."""

from __future__ import annotations

from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags in /proc/cpuinfo: the first two on x86, the third on ARM."""


def lacks_bfloat16(cpuinfo: str) -> bool:
    """Whether a processor lists its features, and bfloat16 is not among them."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
    return bool(flags) and not flags & BFLOAT16


def native_dtype(accelerator: str | None, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``float32`` on a CPU that can only emulate bfloat16 (several times slower), else ``bfloat16``.

    Without an ``accelerator`` ("cpu" or "gpu"), an evaluation's choice counts: a GPU if there is one.
    """
    if accelerator is None:
        import torch  # slow to import, and a training run names its accelerator

        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    emulated = accelerator == "cpu" and cpuinfo.is_file() and lacks_bfloat16(cpuinfo.read_text(errors="replace"))
    return "float32" if emulated else "bfloat16"
