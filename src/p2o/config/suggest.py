"""Unknown keys on the command line, each with the nearest one that exists."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from importlib import resources

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from p2o.config.key import keys
from p2o.config.schema import Config


def unknown_keys(arguments: Sequence[str], root: type = Config) -> list[str]:
    """One line per override whose key does not exist below ``root``; Hydra judges the rest.

    ``hydra.*`` keys, flags and what does not parse are left to Hydra, which has its own messages for them.
    """
    kinds = {name: kind for name, _, kind in keys(root)}
    mappings = tuple(f"{name}." for name, kind in kinds.items() if typing.get_origin(kind) is dict)
    known = {*kinds, *(entry.name for entry in resources.files("p2o.conf").iterdir() if entry.is_dir())}
    lines = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        try:
            key = OverridesParser.create().parse_override(argument).key_or_group
        except OverrideParseException:
            continue
        if "/" in key or key in known or key.startswith(("hydra", *mappings)):
            continue
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f", did you mean {nearest[0]}?" if nearest else "; --cfg job lists the keys"
        lines.append(f"unknown key {key}{hint}")
    return lines
