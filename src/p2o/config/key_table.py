"""``docs/configuration.md``, made from the schema: ``python -m p2o.config.key_table > docs/configuration.md``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from p2o.config.evaluation import EvaluateConfig
from p2o.config.key import allowed, is_node, keys
from p2o.config.schema import SCHEMAS, Config

_HEADER = """# Every key of the configuration

Made from `src/p2o/config` by `python -m p2o.config.key_table > docs/configuration.md`.

Defaults are those of the schema; a file of `conf/` says what its choice changes, and `--cfg job` prints what a command
would run. A key without a default is set by a choice, or by you. *Identity*: a different value makes a different run,
and the first run's folder refuses it. All other keys may differ between launches of one run."""
_TABLE = """
| key | type | default | allowed | identity | meaning |
|---|---|---|---|---|---|"""


def render() -> str:
    """The whole page."""
    seen: set[str] = set()
    commands = {"python -m p2o.run": Config, "python -m p2o.evaluate": EvaluateConfig}
    return "\n".join(
        [_HEADER, *(line for title, root in commands.items() for line in _sections(title, root, seen)), ""]
    )


def meanings(node: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, inherited fields included."""
    found = {}
    for owner in reversed(node.__mro__[:-1]):
        (definition,) = ast.parse(inspect.getsource(owner)).body
        for statement, after in itertools.pairwise(typing.cast(ast.ClassDef, definition).body):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def _sections(title: str, root: type, seen: set[str]) -> Iterator[str]:
    """The table of a command's own keys, then those of each node that is not among ``seen``, choice by choice."""
    yield from _section(f"## `{title}`", root, _rows(root))
    nodes = {name: kind for name, _, kind in keys(root) if "." not in name and is_node(kind)}
    if known := ", ".join(f"`{name}`" for name in nodes if name in seen):
        yield f"\n{known}: as above."
    for name, base in nodes.items():
        if name not in seen:
            yield from _section(f"## `{name}`", base, _rows(base, f"{name}."))
            for kind, choice in SCHEMAS.get(name, {}).items():
                if choice is not base:
                    yield from _section(f"### `{name}`: {kind}", choice, _rows(choice, f"{name}.", base))
    seen.update(nodes)


def _section(title: str, node: type, rows: Iterator[str]) -> Iterator[str]:
    yield f"\n{title}\n\n{inspect.getdoc(node)}"
    if lines := list(rows):
        yield from (_TABLE, *lines)


def _rows(node: type, prefix: str = "", base: type | None = None) -> Iterator[str]:
    """One row per key that differs from ``base``; the keys of a mapping's values appear under ``NAME``."""
    texts, types = meanings(node), typing.get_type_hints(node)
    inherited = {field.name: _default(field) for field in dataclasses.fields(base)} if base else {}
    for field in dataclasses.fields(node):
        name, kind, default = f"{prefix}{field.name}", types[field.name], _default(field)
        if inherited.get(field.name) == default or (base and field.name == "kind"):
            continue
        if not is_node(kind):
            identity = "yes" if field.metadata.get("identity", True) else "no"
            cells = (f"`{name}`", f"`{field.type}`", default, allowed(field), identity, texts[field.name])
            yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
        inner = typing.get_args(kind)[-1] if typing.get_origin(kind) is dict else kind
        if is_node(inner) and prefix:
            yield from _rows(inner, f"{name}." if inner is kind else f"{name}.NAME.")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "" if value == MISSING or dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(render(), end="")
