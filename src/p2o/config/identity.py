"""What makes two runs the same: their configurations, without the keys that change nothing that is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

WITHOUT_MEANING = frozenset(
    {
        *("run_dir", "resume", "plan", "profile", "reward.workers", "policy.max_skipped_steps"),
        *(f"trainer.{key}" for key in ("progress", "threads", "accelerator")),
        # of an engine: what it may take of its machine, where it is, how long it is waited for
        *(f"rollout.{key}" for key in ("max_rows", "max_model_len", "kv_cache_gib", "gpu_memory_utilization")),
        *(f"rollout.{key}" for key in ("tensor_parallel_size", "enforce_eager", "weight_transfer", "max_restarts")),
        *(f"rollout.{key}" for key in ("start_s", "stall_s", "urls", "api_key_env", "adapter_dir", "concurrency")),
        *(f"rollout.{key}" for key in ("timeout_s", "retry_s", "max_retries")),
        # of an evaluation: what is counted from its answers, and how it is shown
        *("compare", "pass_at", "confidence", "resamples", "progress", "threads"),
    }
)
"""Keys that may differ between the launches of one run: they do not change what is computed, but for rounding."""


UNCOUNTED = ("logger.", "callbacks.", "extensions.")
"""Nodes that say how a run is watched, not what it computes."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def meaningful(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, nested or flat, as dotted keys without those of no meaning."""
    return {
        key: value
        for key, value in flat(config).items()
        if key not in WITHOUT_MEANING and not f"{key}.".startswith(UNCOUNTED)
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for every key that makes ``here`` another run than ``there``; both as plain containers."""
    before, now = meaningful(there), meaningful(here)
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} asked for"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def digest(config: Mapping[str, Any]) -> str:
    """A short name of the run that a configuration describes."""
    text = json.dumps(meaningful(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
