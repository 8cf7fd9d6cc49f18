"""Objects that the configuration names by ``_target_``: Lightning's callbacks and loggers, and custom ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from p2o.config.validate import ConfigError

ALLOWED = ("lightning", "p2o")
"""Packages whose classes may always be named."""

T = TypeVar("T")


def instantiate_nodes(nodes: Mapping[str, Any], key: str, kind: type[T], allow: Sequence[str]) -> list[T]:
    """One ``kind`` per node of ``key`` (``callbacks`` or ``logger``), in order.

    Raises :class:`ConfigError` for a node without ``_target_``, for a class of a package that is neither in
    :data:`ALLOWED` nor in ``allow`` (``extensions.allow``), and for one that cannot be made.
    """
    return [_instantiate(node, f"{key}.{name}", kind, (*ALLOWED, *allow)) for name, node in nodes.items()]


def _instantiate(node: Any, key: str, kind: type[T], allowed: Sequence[str]) -> T:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError([f"{key} has no _target_: give {key}._target_=<package.module.Class>"])
    for target in _targets(node):
        package = target.partition(".")[0]
        if package not in allowed:
            raise ConfigError(
                [
                    f"{key}._target_={target}: classes of {', '.join(allowed)} may be named; "
                    f"add extensions.allow=[{package}] if you trust {package}"
                ]
            )
    try:
        made = instantiate(node)
    except InstantiationException as error:
        raise ConfigError([f"{key}: {' '.join(str(error.__cause__ or error).split())}"]) from error
    if not isinstance(made, kind):
        raise ConfigError([f"{key}._target_={node['_target_']} is a {type(made).__name__}, not a {kind.__name__}"])
    return made


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in the node, nested ones included."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == "_target_":
                yield str(value)
            yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)
