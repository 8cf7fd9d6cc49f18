"""The rules of ``conf/evaluate.yaml`` that a single field's type cannot state."""

from __future__ import annotations

from collections.abc import Iterator

from p2o.config import schema
from p2o.config.evaluation import EvaluateConfig
from p2o.config.validate import CHOICES, passwords

CHECKED_CHOICES = ("model.dtype", "reward.kind")

POSITIVE = (
    "rollout.max_prompt_tokens",
    "rollout.max_new_tokens",
    "reward.deadline_s",
    "reward.workers",
    "samples",
    "limit",
    "chunk",
    "resamples",
    "threads",
)


def validate_evaluation(config: EvaluateConfig) -> list[str]:
    """Every problem of a configuration, empty where it can run. Nothing heavy is imported or started."""
    return [*_fields(config), *_questions(config), *_sampling(config), *_reward(config), *passwords(config)]


def _get(config: EvaluateConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _fields(config: EvaluateConfig) -> Iterator[str]:
    for key in CHECKED_CHOICES:
        if (value := _get(config, key)) not in CHOICES[key]:
            yield f"{key}={value} is none of {', '.join(CHOICES[key])}"
    given = {key: _get(config, key) for key in POSITIVE}
    given |= {f"benchmarks.sets.{name}.limit": one.limit for name, one in config.benchmarks.sets.items()}
    for key, value in given.items():
        if value is not None and (not isinstance(value, int | float) or value <= 0):
            yield f"{key}={value} must be above 0"
    if not config.pass_at or min(config.pass_at) < 1:
        yield f"pass_at={config.pass_at}: give numbers of answers, from 1 on"
    if not 0 < config.confidence < 1:
        yield f"confidence={config.confidence} must lie in (0, 1)"


def _questions(config: EvaluateConfig) -> Iterator[str]:
    benchmarks = config.benchmarks
    if not (benchmarks.sets or benchmarks.files or benchmarks.runs):
        yield "there is nothing to answer: give benchmarks=[gsm8k,...] or benchmarks.files=[<file.jsonl>]"
    if "{question}" not in config.prompt:
        yield "prompt must contain {question}"


def _sampling(config: EvaluateConfig) -> Iterator[str]:
    rollout = config.rollout
    if rollout.temperature != 0:
        yield f"rollout.temperature={rollout.temperature} is not read here: give temperature={rollout.temperature}"
    if not 0 < rollout.top_p <= 1:
        yield f"rollout.top_p={rollout.top_p} must lie in (0, 1]"
    if config.temperature is not None and config.temperature < 0:
        yield f"temperature={config.temperature} must not be negative"
    if (config.samples or 1) > 1 and config.temperature == 0:
        yield f"samples={config.samples} needs temperature > 0: greedy answers are all alike"
    if isinstance(rollout, schema.VllmServerRollout) and not rollout.urls:
        yield "rollout=vllm_server needs rollout.urls=[http://HOST:PORT,...]: docs/rollout.md says how to start one"


def _reward(config: EvaluateConfig) -> Iterator[str]:
    if config.reward.kind == "function" and not config.reward.function:
        yield "reward.kind=function needs reward.function=<package.module.function>"
    if config.reward.kind == "reasoning_gym" and (config.benchmarks.sets or config.benchmarks.files):
        yield "reward=reasoning_gym scores reasoning-gym questions only: use reward=math, exact or function"
