"""What ranks tell each other, as JSON: plain values, p2o's own dataclasses and enums, and errors.

Not pickles: a port of a rank is open to the network, and a pickle runs what it names. Here a message can only name
classes of p2o, and exceptions.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from p2o.errors import RunError

PLAIN = {type(None), bool, int, float, str}
GROUPS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> bytes:
    """Raises ``TypeError`` for a value of any other kind."""
    return json.dumps(_pack(value)).encode()


def decode(message: bytes) -> Any:
    """The inverse of :func:`encode`; subclasses of dict come back as a dict."""
    return _unpack(json.loads(message))


def _pack(value: Any) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is list:
        return value if PLAIN.issuperset(map(type, value)) else [_pack(part) for part in value]
    if isinstance(value, Mapping):
        return {"dict": [[_pack(key), _pack(part)] for key, part in value.items()]}
    if kind.__name__ in GROUPS and kind is GROUPS[kind.__name__]:
        return {kind.__name__: _pack(list(value))}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Enum):
        return {"enum": _name(kind), "value": value.value}
    if isinstance(value, BaseException):
        return {"error": _name(kind), "args": _arguments(value), "notes": list(getattr(value, "__notes__", ()))}
    if dataclasses.is_dataclass(value):
        fields = {field.name: _pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"object": _name(kind), "fields": fields}
    raise TypeError(f"{kind.__name__} cannot be sent from rank to rank")


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return value if PLAIN.issuperset(map(type, value)) else [_unpack(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {_unpack(key): _unpack(part) for key, part in value["dict"]}
    if "enum" in value:
        return _class(value["enum"])(value["value"])
    if "path" in value:
        return Path(value["path"])
    if "error" in value:
        return _error(value)
    if "object" in value:
        made = object.__new__(_class(value["object"]))
        for name, part in value["fields"].items():
            object.__setattr__(made, name, _unpack(part))  # also of frozen ones
        return made
    ((kind, parts),) = value.items()
    return GROUPS[kind](_unpack(parts))


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> Any:
    module, _, qualified = name.partition(":")
    known = module == "signal" or module.startswith("p2o.")
    found = getattr(sys.modules.get(module), qualified, None) if known else None
    if not isinstance(found, type):
        raise TypeError(f"{name} is not a class of p2o")
    return found


def _arguments(error: BaseException) -> Any:
    try:
        return _pack(error.args)
    except TypeError:
        return _pack((str(error),))


def _error(value: Mapping[str, Any]) -> BaseException:
    """The error with its arguments; of a class that is neither p2o's nor Python's, its name and text."""
    module, _, qualified = value["error"].partition(":")
    args = _unpack(value["args"])
    kind = getattr(builtins, qualified, None) if module == "builtins" else None
    if module.startswith("p2o."):
        kind = getattr(sys.modules.get(module), qualified, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind, args = RunError, (f"{qualified}: {' '.join(map(str, args))}",)
    error = kind.__new__(kind, *args)
    error.args = args
    for note in value["notes"]:
        error.add_note(note)
    return error
