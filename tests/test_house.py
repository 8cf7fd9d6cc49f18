"""The house keeps its shape: rooms, walls and sizes (CONTRIBUTING.md tells them)."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "p2o"
FILES = sorted(SRC.rglob("*.py"))

LEVELS = (
    (
        "types",
        "errors",
        "files",
        "faults",
        "json_lines",
        "extensions",
        "hub",
        "logs",
        "messages",
        "profile",
        "ranks",
        "stop",
    ),
    ("config",),
    ("environment", "processes", "run_folder", "strategy"),
    ("rewards", "tasks"),
    ("policy",),
    ("rollout",),
    ("evolution",),
    ("algorithm",),
    ("reporting",),
    ("callbacks",),
    ("evaluation", "planning"),
    ("job",),
    ("launch",),
    ("launcher", "command"),
    ("run", "rank", "evaluate", "report"),
)
"""Rooms and top-level files from the ground up; nothing imports what stands higher."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

WALLS = {
    "vllm": {"rollout"},
    "gepa": {"evolution"},
    "lightning": {"algorithm/module.py", "tasks/rounds.py", "callbacks", "job.py", "processes.py", "strategy.py"},
    "hydra": {"config", "command.py", "run.py", "evaluate.py", "launcher.py"},
    "omegaconf": {"config", "run.py", "evaluate.py", "report.py", "launcher.py", "launch.py"},
}
"""Third-party package → the rooms and files that may import it."""

THE_METHOD = 900
"""Lines of code that ``algorithm/`` may have: what is read in half an hour."""
THE_PATH = ("config/schema.py", "job.py", "algorithm", "policy/layout.py", "policy/head.py", "policy/model.py",
            "rollout/sampler.py", "rollout/engine.py", "rollout/prompts.py", "evolution/gepa_phase.py",
            "evolution/adapter.py", "evolution/proposals.py", "evolution/monitor.py", "evolution/validity.py",
            "evolution/reflectors/base.py")  # fmt: skip
"""What one reads to follow a run from its configuration to the gradient and to the templates."""


def name(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def lines_of_code(path: Path) -> int:
    """Lines without blank ones, comments, and the docstrings of modules, classes and functions."""
    text = path.read_text(encoding="utf-8")
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            prose.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and i not in prose for i, line in lines)


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "p2o":
                yield from (f"p2o.{alias.name}" for alias in node.names)
            else:
                yield node.module


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_import_runs_upward(path: Path) -> None:
    if name(path) == "__init__.py":
        return
    own = LEVEL[room(path)]
    for module in imports(path):
        package, _, rest = module.partition(".")
        if package == "p2o" and rest and not rest.startswith("__version__"):
            target = rest.split(".")[0]
            assert target == "conf" or LEVEL[target] <= own, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_wall_is_broken(path: Path) -> None:
    for module in imports(path):
        allowed = WALLS.get(module.split(".")[0])
        assert allowed is None or {room(path), name(path)} & allowed, f"{name(path)} imports {module}"


def test_the_method_knows_torch_alone() -> None:
    standard = {"__future__", "collections", "contextlib", "copy", "dataclasses", "enum", "itertools", "logging",
                "math", "pathlib", "random", "statistics", "typing"}  # fmt: skip
    for path in (SRC / "algorithm").glob("*.py"):
        if path.name != "module.py":
            found = {module.split(".")[0] for module in imports(path)} - standard
            assert found <= {"torch", "p2o"}, f"{path.name}: {found}"


def test_sizes() -> None:
    method = sum(lines_of_code(path) for path in (SRC / "algorithm").glob("*.py"))
    assert method <= THE_METHOD
    followed = [path for path in FILES if {room(path), name(path)} & set(THE_PATH)]
    assert sum(map(lines_of_code, followed)) <= 3500


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= 60, f"{function.name} has {length} lines"
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        assert len([one for one in named if one.arg not in ("self", "cls", "ctx")]) <= 8, (
            f"{function.name} has too many"
        )


def test_no_file_name_occurs_twice() -> None:
    counts = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [file for file, count in counts.items() if count > 1] == []
