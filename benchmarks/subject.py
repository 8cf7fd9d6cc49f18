"""What all rows share: the shipped defaults, the small real model, its policy and the questions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import torch
from hydra import compose, initialize_config_module

from p2o.config import Config, load_config, register_schemas
from p2o.launcher import register_launcher
from p2o.policy.builders import resolve_model
from p2o.policy.model import Policy, load_policy
from p2o.rewards import GraderPool
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks import load_problems
from p2o.types import Problem

MODEL_VARIABLE = "P2O_BENCHMARK_MODEL"
"""Environment variable that names another model than the default job's to every contestant."""


def configure(*overrides: str) -> Config:
    """The default job's configuration with ``overrides``."""
    model = os.environ.get(MODEL_VARIABLE)
    chosen = ["model=hub", f"model.path={model}"] if model else []
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    register_schemas()
    register_launcher()
    with initialize_config_module("p2o.conf", version_base="1.3"):
        return load_config(compose("config", overrides=["run_dir=unused", *chosen, *overrides]))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(config: Config) -> Policy:
    policy = load_policy(config.model, config.tuning, seed=0)
    policy.module.to(device())  # type: ignore[arg-type]
    return policy


def model_folder(config: Config) -> str:
    """What transformers loads the same model from."""
    return str(resolve_model(config.model))


def renderer(config: Config, policy: Policy) -> PromptRenderer:
    return PromptRenderer(
        policy.tokenizer, config.data.prompt, config.rollout.max_prompt_tokens, config.model.chat_template_kwargs
    )


@cache
def _problems(count: int) -> tuple[Problem, ...]:
    config = configure(f"data.train_size={count}", "data.val_size=1")
    return tuple(load_problems(config.data, config.reward).train)


def problems(count: int) -> Sequence[Problem]:
    """The first questions of the default job's data."""
    return _problems(count)


def grader(config: Config) -> GraderPool:
    return GraderPool(config.reward)
