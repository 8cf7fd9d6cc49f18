"""The rules of ``conf/evaluate.yaml`` that a single field's type cannot state."""

from __future__ import annotations

from collections.abc import Iterator

from p2o.config import schema
from p2o.config.evaluation import EvaluateConfig
from p2o.config.ranges import out_of_range, server_problems
from p2o.config.validate import passwords


def validate_evaluation(config: EvaluateConfig) -> list[str]:
    """Every problem of a configuration, empty where it can run. Nothing heavy is imported or started."""
    return [
        *out_of_range(config),
        *_fields(config),
        *_questions(config),
        *_sampling(config),
        *_reward(config),
        *passwords(config),
    ]


def _fields(config: EvaluateConfig) -> Iterator[str]:
    for name, one in config.benchmarks.sets.items():
        if one.limit is not None and one.limit <= 0:
            yield f"benchmarks.sets.{name}.limit={one.limit} must be above 0"
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
    if (config.samples or 1) > 1 and config.temperature == 0:
        yield f"samples={config.samples} needs temperature > 0: greedy answers are all alike"
    if isinstance(rollout, schema.VllmServerRollout):
        yield from server_problems(rollout.urls)


def _reward(config: EvaluateConfig) -> Iterator[str]:
    if config.reward.kind == "function" and not config.reward.function:
        yield "reward.kind=function needs reward.function=<package.module.function>"
    if config.reward.kind == "reasoning_gym" and (config.benchmarks.sets or config.benchmarks.files):
        yield "reward=reasoning_gym scores reasoning-gym questions only: use reward=math, exact or function"
