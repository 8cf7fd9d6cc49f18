"""The default, choices and range of a configuration key, and whether it belongs to a run's identity."""

from __future__ import annotations

import copy
import dataclasses
import operator
import typing
from collections.abc import Iterator
from typing import Any, TypedDict, TypeGuard, Unpack

DOTTED_NAME = "a dotted name"
"""Among ``choices``: the name of something in Python, looked up when the run starts."""
_HOLDS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}


class Limits(TypedDict, total=False):
    """The range of a number. No range contains nan."""

    above: float
    at_least: float
    below: float
    at_most: float


def key(default: Any, *, choices: tuple[str, ...] = (), identity: bool = True, **limits: Unpack[Limits]) -> Any:
    """A dataclass field with rules. Every element of a list must keep them; None always does.

    ``identity=False`` marks a key that may differ between launches of one run: it changes results by rounding
    only.
    """
    metadata = {"choices": choices, "identity": identity, "limits": limits}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def keys(root: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Dotted key, field and type of every field below a dataclass, over all choices (subclasses) of its nodes."""
    types = typing.get_type_hints(root)
    for field in dataclasses.fields(root):
        name, kind = f"{prefix}{field.name}", types[field.name]
        yield name, field, kind
        if is_node(kind):
            for choice in (kind, *_choices(kind)):
                yield from keys(choice, f"{name}.")


def is_node(kind: Any) -> TypeGuard[type]:
    """Whether a field's type is a dataclass, so that the field is a node with keys of its own."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _choices(node: type) -> Iterator[type]:
    subclasses: list[type] = node.__subclasses__()
    for choice in subclasses:
        yield from (choice, *_choices(choice))


def allowed(field: dataclasses.Field[Any]) -> str:
    """What a field's values must be, such as ``above 0 and at most 1``; empty if its type says it all."""
    if choices := field.metadata.get("choices"):
        return f"one of {', '.join(choices)}"
    return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in field.metadata.get("limits", {}).items())


def out_of_range(node: Any, prefix: str = "") -> Iterator[str]:
    """One line per value of a configuration that is not among its choices, or out of range."""
    for field in dataclasses.fields(node):
        name, value = f"{prefix}{field.name}", getattr(node, field.name)
        children = value if isinstance(value, dict) else {}
        for child, part in [(name, value), *((f"{name}.{child}", part) for child, part in children.items())]:
            if dataclasses.is_dataclass(part):
                yield from out_of_range(part, f"{child}.")
        values = value if isinstance(value, list) else [value]
        if not all(_keeps(field, one) for one in values):
            yield f"{name}={value}{': each' if isinstance(value, list) else ''} must be {allowed(field)}"


def _keeps(field: dataclasses.Field[Any], value: Any) -> bool:
    if value is None:
        return True
    if choices := field.metadata.get("choices"):
        return value in choices or (DOTTED_NAME in choices and "." in value)
    return all(_HOLDS[name](value, limit) for name, limit in field.metadata.get("limits", {}).items())
