"""Train: ``python -m p2o.run +experiment=teacher_ref``."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from p2o.command import Task, refuse, run_command
from p2o.config import Config, ConfigError, load_config, register_schemas
from p2o.launcher import register_launcher

register_schemas()
register_launcher()


@hydra.main(version_base="1.3", config_path="pkg://p2o.conf", config_name="config")
def main(composed: DictConfig) -> float | None:
    """Compose, check, train. Returns the final accuracy on plain held-out questions, for Hydra's sweepers."""
    Task.begun = True
    try:
        config = load_config(composed)
    except ConfigError as error:
        refuse(f"The configuration cannot run:\n{error}")
    # Heavy imports wait until the configuration is known to be good.
    from p2o.launch import launch

    return launch(config, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    run_command(main, Config)
