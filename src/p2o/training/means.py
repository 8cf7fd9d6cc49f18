"""What a run computes with: on other means the same run may come out with other bits."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Mapping

import torch

from p2o.config.schema import Config

log = logging.getLogger(__name__)


def means_of(config: Config) -> dict[str, str]:
    """Threads, devices and versions, whose change may change the order in which sums are rounded."""
    return {
        "threads": str(torch.get_num_threads()),
        "accelerator": config.trainer.accelerator,
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def warn_of_other_means(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say what has changed since the checkpoint was written; nothing where there is none yet."""
    changed = [f"{name} {before[name]} → {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        log.warning(
            "the run goes on with other means (%s): its bits may differ from those of an uninterrupted run",
            ", ".join(changed),
        )
