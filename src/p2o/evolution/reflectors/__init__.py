"""Who writes templates: a strategy library, a model behind an API, or the initial policy, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2o.config.schema import CustomReflector, GepaConfig, OpenAIReflector, ReflectorConfig, StrategiesReflector
from p2o.evolution.reflectors import strategies
from p2o.evolution.reflectors.base import (
    Feedback,
    Reflection,
    ReflectionJob,
    Reflector,
    ReflectorError,
    UnreachableError,
)
from p2o.evolution.reflectors.reference import Complete, ReferenceReflector
from p2o.extensions import load_object
from p2o.rollout.ledger import Ledger

__all__ = [
    "Feedback",
    "Reflection",
    "ReflectionJob",
    "Reflector",
    "ReflectorError",
    "UnreachableError",
    "build_reflector",
]


def build_reflector(
    config: ReflectorConfig,
    gepa: GepaConfig,
    complete: Complete,
    *,
    count_tokens: Callable[[str], int],
    ledger: Ledger,
    run_dir: Path,
) -> Reflector:
    """The reflector of a run. ``gepa.variant=self_ref`` always means the reference model, whatever ``config`` is.

    ``complete`` asks the reference model (the sampler books it); the others book what they spend in the run's
    ``ledger``. ``run_dir`` is the run's folder, which also keeps what an endpoint was paid. Raises
    :class:`ReflectorError` for a library that cannot be read; see ``Reflector.check`` for what else may be missing.
    """
    if gepa.variant != "self_ref":
        if isinstance(config, StrategiesReflector):
            return strategies.StrategiesReflector(strategies.Library.load(config.strategies), ledger)
        if isinstance(config, CustomReflector):
            return load_object(config.factory, "reflector.factory")(config, ledger)
        if isinstance(config, OpenAIReflector):
            from p2o.evolution.reflectors import openai  # here, because the client takes a second to import

            return openai.OpenAIReflector(
                config,
                max_template_tokens=gepa.max_template_tokens,
                count_tokens=count_tokens,
                ledger=ledger,
                spent=run_dir / "evolution" / "spent.json",
            )
    return ReferenceReflector(
        complete,
        max_prompt_tokens=config.max_prompt_tokens,
        max_template_tokens=gepa.max_template_tokens,
        count_tokens=count_tokens,
    )
