"""From Hydra's DictConfig to the dataclasses, and the registration of their schemas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from p2o.config import schema
from p2o.config.evaluation import EvaluateConfig
from p2o.config.schema import Config
from p2o.config.search_path import ExperimentsSearchPath
from p2o.config.validate import ConfigError, validate
from p2o.config.validate_evaluation import validate_evaluation

Root = TypeVar("Root", Config, EvaluateConfig)

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {
        "hub": schema.ModelConfig,
        "wheel": schema.WheelModel,
        "random": schema.RandomModel,
        "custom": schema.CustomModel,
    },
    "tuning": {"lora": schema.LoraTuning, "full": schema.FullTuning},
    "data": {
        "reasoning_gym": schema.ReasoningGymData,
        "hub": schema.HubData,
        "jsonl": schema.JsonlData,
        "custom": schema.CustomData,
    },
    "rollout": {
        "hf": schema.HfRollout,
        "vllm": schema.VllmRollout,
        "vllm_server": schema.VllmServerRollout,
        "custom": schema.CustomRollout,
    },
    "reflector": {
        "strategies": schema.StrategiesReflector,
        "openai": schema.OpenAIReflector,
        "reference": schema.ReferenceReflector,
        "custom": schema.CustomReflector,
    },
}
"""The nodes whose choices have fields of their own: ``conf/<node>/*.yaml`` name theirs as ``/schema/<node>/<kind>``."""


def register_schemas() -> None:
    """Make ``/schema/...``, ``${by:choice,{choice:value}}`` and the experiments' YAML files known to Hydra.

    Must run before anything is composed.
    """
    Plugins.instance().register(ExperimentsSearchPath)
    OmegaConf.register_new_resolver("by", lambda choice, values: values[choice], replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    store.store(group="schema", name="evaluate", node=EvaluateConfig, package="_global_")
    for node, kinds in SCHEMAS.items():
        for kind, cls in kinds.items():
            store.store(group=f"schema/{node}", name=kind, node=cls)


def load_config(composed: DictConfig) -> Config:
    """The composed tree as dataclasses, checked by :func:`validate`.

    Raises :class:`ConfigError` with one line a problem, each naming the key and what to change.
    """
    return _checked(_to_object(composed, Config), validate)


def load_evaluation(composed: DictConfig) -> EvaluateConfig:
    """As :func:`load_config`, of ``conf/evaluate.yaml``."""
    return _checked(_to_object(composed, EvaluateConfig), validate_evaluation)


def _to_object(composed: DictConfig, root: type[Root]) -> Root:
    if unknown := list(_unknown(composed, "")):
        raise ConfigError([f"unknown key {key}" for key in unknown])
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError([f"{key} is not set: give {key}=<value>" for key in missing]) from error
        raise ConfigError([str(error).splitlines()[0]]) from error
    assert isinstance(config, root)
    return config


def _checked(config: Root, rules: Callable[[Root], list[str]]) -> Root:
    if problems := rules(config):
        raise ConfigError(problems)
    return config


def _unknown(node: DictConfig, prefix: str) -> Iterator[str]:
    """Keys that ``+key=value`` put where the schema has none; Hydra opens every node for such overrides."""
    schema_of = OmegaConf.get_type(node)
    fields = {field.name for field in dataclasses.fields(schema_of)} if dataclasses.is_dataclass(schema_of) else None
    for key in map(str, node):
        if fields is not None and key not in fields:
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(node, key) and isinstance(child := node._get_node(key), DictConfig):
            yield from _unknown(child, f"{prefix}{key}.")


def to_plain(config: Config | EvaluateConfig) -> dict[str, Any]:
    """The configuration as plain containers, for ``config.yaml``, checkpoints and hyperparameters."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True))


def from_plain(node: type, values: Mapping[str, Any]) -> Any:
    """The inverse of :func:`to_plain`, of one node: ``values`` as an object of the dataclass ``node``."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), OmegaConf.create(dict(values))))
