"""Unknown keys on the command line, answered with the nearest one that exists."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from importlib import resources

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from p2o.config.load import SCHEMAS
from p2o.config.schema import Config


def unknown_keys(arguments: Sequence[str], root: type = Config) -> list[str]:
    """One line for each override whose key no configuration below ``root`` has; Hydra judges all the rest.

    ``hydra.*`` keys, flags and what does not parse are left to Hydra, which has messages of its own for them.
    """
    known, open_ended = _known_keys(root)
    groups = {entry.name for entry in resources.files("p2o.conf").iterdir() if entry.is_dir()}
    lines = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        try:
            key = OverridesParser.create().parse_override(argument).key_or_group
        except OverrideParseException:
            continue
        if key.startswith("hydra") or "/" in key or key in known or key in groups or key.startswith(open_ended):
            continue
        nearest = difflib.get_close_matches(key, [*known, *groups], n=1, cutoff=0.5)
        hint = f", did you mean {nearest[0]}?" if nearest else "; --cfg job lists the keys"
        lines.append(f"unknown key {key}{hint}")
    return lines


def _known_keys(root: type) -> tuple[set[str], tuple[str, ...]]:
    """Every dotted key of the tree, over all choices of its nodes, and the prefixes of free-form mappings."""
    known: set[str] = set()
    open_ended: list[str] = []
    for key, is_mapping in _walk(root, ""):
        known.add(key)
        if is_mapping:
            open_ended.append(f"{key}.")
    return known, tuple(open_ended)


def _walk(cls: type, prefix: str) -> Iterator[tuple[str, bool]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, kind = f"{prefix}{field.name}", hints[field.name]
        yield key, typing.get_origin(kind) is dict
        if dataclasses.is_dataclass(kind):
            for choice in {kind, *(SCHEMAS.get(key, {}).values())}:
                yield from _walk(typing.cast(type, choice), f"{key}.")
