"""Custom parts: a dotted name in the configuration, an object of an importable module here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Settings = TypeVar("Settings")


class ExtensionError(ValueError):
    """A custom part cannot be used as configured; the message names the key."""


def load_object(name: str, key: str) -> Any:
    """The object ``package.module.name``. Raises :class:`ExtensionError` naming ``key`` where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExtensionError(
            f"{key}={name}: {error}; give module.name of a module that can be imported (PYTHONPATH)"
        ) from error


def read_params(params: Mapping[str, Any], settings: type[Settings], key: str) -> Settings:
    """The ``params`` of a custom part as an object of the dataclass ``settings``.

    Raises :class:`ExtensionError` naming ``key.<field>`` for an unknown name, a missing one and a wrong type.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), dict(params)))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ExtensionError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
