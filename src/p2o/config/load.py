"""From Hydra's DictConfig to the dataclasses, and the registration of their schemas."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from p2o.config.evaluation import EvaluateConfig
from p2o.config.precision import native_dtype
from p2o.config.rules import ConfigError, validate
from p2o.config.schema import SCHEMAS, Config
from p2o.config.search_path import ExperimentsSearchPath
from p2o.extensions import ExtensionError

Root = TypeVar("Root", Config, EvaluateConfig)
Params = TypeVar("Params")


def register_schemas() -> None:
    """Make ``/schema/...``, the resolvers ``by`` and ``native_dtype``, and the experiments' YAML files known to Hydra.

    Must run before anything is composed.
    """
    Plugins.instance().register(ExperimentsSearchPath)
    OmegaConf.register_new_resolver("by", lambda choice, values: values[choice], replace=True)
    OmegaConf.register_new_resolver("native_dtype", native_dtype, replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    store.store(group="schema", name="evaluate", node=EvaluateConfig, package="_global_")
    for node, kinds in SCHEMAS.items():
        for kind, cls in kinds.items():
            store.store(group=f"schema/{node}", name=kind, node=cls)


def load_config(composed: DictConfig) -> Config:
    """The composed tree as dataclasses, checked by :func:`validate`.

    Raises :class:`ConfigError` with one line per problem, each naming the key and what to change.
    """
    return _load(composed, Config)


def load_evaluation(composed: DictConfig) -> EvaluateConfig:
    """As :func:`load_config`, for ``conf/evaluate.yaml``."""
    return _load(composed, EvaluateConfig)


def _load(composed: DictConfig, root: type[Root]) -> Root:
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
    if problems := validate(config):
        raise ConfigError(problems)
    return config


def _unknown(node: DictConfig, prefix: str) -> Iterator[str]:
    """Keys that ``+key=value`` added and the schema lacks; Hydra accepts such overrides in every node."""
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
    """The inverse of :func:`to_plain`, for one node: ``values`` as an object of the dataclass ``node``."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), OmegaConf.create(dict(values))))


def read_params(params: Mapping[str, Any], node: type[Params], key: str) -> Params:
    """The free-form ``params`` of a custom part as an object of the dataclass ``node``.

    Raises :class:`ExtensionError` naming ``key.<field>`` for an unknown name, a missing one and a wrong type.
    """
    try:
        return cast(Params, from_plain(node, params))
    except OmegaConfBaseException as error:
        raise ExtensionError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
