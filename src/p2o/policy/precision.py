"""Is this processor fast at bfloat16, the default arithmetic of the forward pass?"""

from __future__ import annotations

import logging
from pathlib import Path

from p2o.config.schema import ModelConfig

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags in /proc/cpuinfo: the first two on x86, the third on ARM."""

log = logging.getLogger(__name__)


def lacks_bfloat16(cpuinfo: str) -> bool:
    """Whether a processor lists its features, and bfloat16 is not among them."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
    return bool(flags) and not flags & BFLOAT16


def hint_at_precision(model: ModelConfig, device: str) -> None:
    """Log a line if ``model.dtype=bfloat16`` is emulated on the CPU; nothing if nobody can tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if device != "cpu" or model.dtype != "bfloat16" or not cpuinfo.is_file():
        return
    if lacks_bfloat16(cpuinfo.read_text(encoding="utf-8", errors="replace")):
        log.warning("this processor has no instructions for bfloat16: model.dtype=float32 is likely faster here")
