"""Composing, checking and handing out the configuration."""

from p2o.config.evaluation import EvaluateConfig
from p2o.config.load import load_config, load_evaluation, read_params, register_schemas
from p2o.config.rules import ConfigError, validate
from p2o.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "EvaluateConfig",
    "load_config",
    "load_evaluation",
    "read_params",
    "register_schemas",
    "validate",
]
