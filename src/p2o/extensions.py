"""Custom parts: a dotted name in the configuration, an object of an importable module here."""

from __future__ import annotations

import importlib
from typing import Any

from p2o.errors import InputError


class ExtensionError(InputError):
    """A custom part cannot be used as configured; the message names the key."""


def load_object(name: str, key: str) -> Any:
    """The object ``package.module.name``. Raises :class:`ExtensionError` naming ``key`` if there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExtensionError(
            f"{key}={name}: {error}; give module.name of a module that can be imported (PYTHONPATH)"
        ) from error
