"""Peak of live allocations, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that were live at once while ``call`` ran, beyond those that were before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    live, peak = 0, 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
