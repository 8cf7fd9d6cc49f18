"""What is installed: everything that is imported is declared, and the wheel holds what the commands read."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
EXTRA = {"vllm"}
"""Imported where it is chosen, and only there: an extra."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (setup["options"]["install_requires"] + setup["options.extras_require"]["vllm"]).split("\n")
    return {canonical(Requirement(line).name) for line in lines if line}


def imported() -> set[str]:
    """Top-level names of all modules that any source imports."""
    names: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"p2o", "hydra_plugins"} - EXTRA


def test_everything_that_is_imported_is_declared() -> None:
    belongs = importlib.metadata.packages_distributions()
    missing = {name for name in imported() if not {canonical(d) for d in belongs.get(name, [name])} & declared()}
    assert missing == set()


def test_the_wheel_holds_what_the_commands_read(tmp_path: Path) -> None:
    if Version(importlib.metadata.version("setuptools")) < Version("77"):
        pytest.skip("setuptools is too old to build the wheel")
    source = tmp_path / "source"
    for name in ("src", "conf", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(source / made.stdout.splitlines()[-1]) as wheel:
        held = set(wheel.namelist())
    wanted = {f"p2o/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    package = ROOT / "src" / "p2o"
    wanted |= {
        f"p2o/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".html", ".css")
    }
    assert wanted - held == set()
    assert not [name for name in held if "experiments" in name or "latent" in name], "the testbed stays in the checkout"
