"""What makes two runs the same: their configurations, without the keys that cannot change a result."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from p2o.config.evaluation import EvaluateConfig
from p2o.config.key import keys
from p2o.config.schema import Config

WITHOUT_IDENTITY = frozenset(
    name
    for root in (Config, EvaluateConfig)
    for name, field, _ in keys(root)
    if not field.metadata.get("identity", True)
)
"""Keys that may differ, with all below them, between launches of one run: they change results by rounding only."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys and values of a nested or flat configuration that make a run what it is."""
    return {key: value for key, value in flat(config).items() if WITHOUT_IDENTITY.isdisjoint(_and_parents(key))}


def _and_parents(key: str) -> Iterator[str]:
    return itertools.accumulate(key.split("."), "{}.{}".format)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One line per key that makes ``here`` a different run from ``there``; both as plain containers."""
    before, now = identity(there), identity(here)
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} asked for"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def digest(config: Mapping[str, Any]) -> str:
    """A short name of the run that a configuration describes."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
