"""Rules that a single field's type cannot state. Each broken one is a line that names the key and the mend."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from p2o.config import schema
from p2o.config.evaluation import EvaluateConfig
from p2o.config.identity import flat
from p2o.config.ranges import out_of_range, server_problems
from p2o.config.schema import Config

_PASSWORD = re.compile(r"://[^/\s]*@")


class ConfigError(ValueError):
    """The configuration cannot run. ``problems`` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def validate(config: Config) -> list[str]:
    """Every problem of a configuration, empty where it can run. Nothing heavy is imported or started."""
    return [
        *out_of_range(config),
        *_ranges(config),
        *_sampling(config),
        *_engine(config),
        *_method(config),
        *_data(config),
        *_reflector(config),
        *passwords(config),
    ]


def _ranges(config: Config) -> Iterator[str]:
    tuning, policy = config.tuning, config.policy
    if isinstance(tuning, schema.LoraTuning) and not 0 <= tuning.dropout < 1:
        yield f"tuning.dropout={tuning.dropout} must lie in [0, 1)"
    if len(policy.betas) != 2 or not all(0 <= beta < 1 for beta in policy.betas):
        yield f"policy.betas={policy.betas}: give two numbers in [0, 1), such as [0.9,0.999]"
    if policy.dual_clip != 0 and not policy.dual_clip >= 1:
        yield f"policy.dual_clip={policy.dual_clip}: give at least 1, or 0 for none"
    if policy.rollouts == 1:
        yield f"policy.rollouts={policy.rollouts}: a group of one has no advantage, use at least 2"
    if policy.updates_per_round > policy.questions_per_round:
        yield "policy.updates_per_round is larger than policy.questions_per_round: an update needs a question"
    if not 0 < config.gepa.solve_threshold <= 1:
        yield f"gepa.solve_threshold={config.gepa.solve_threshold} must lie in (0, 1]"
    if not 0 <= policy.warmup_fraction < 1:
        yield f"policy.warmup_fraction={policy.warmup_fraction} must lie in [0, 1)"
    if not 0 < config.distillation.low < 1 < config.distillation.high:
        yield "distillation.low and distillation.high must lie on either side of 1"


def _sampling(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if not rollout.temperature > 0:
        yield "rollout.temperature must be above 0: a greedy group has equal rewards and teaches nothing"
    if not 0 < rollout.top_p <= 1:
        yield f"rollout.top_p={rollout.top_p} must lie in (0, 1]"
    if rollout.top_p < 1 and config.distillation.kind in ("importance", "mask"):
        yield (
            f"rollout.top_p={rollout.top_p} biases the ratio that distillation={config.distillation.kind} reads: "
            "use rollout.top_p=1 or distillation=replace"
        )
    if rollout.top_p < 1 and rollout.importance != "off":
        yield (
            f"rollout.top_p={rollout.top_p} biases rollout.importance={rollout.importance}: the engine's log-probs are "
            "those of the cut distribution; use rollout.top_p=1 or rollout.importance=off"
        )
    if config.gepa.dev_samples > 1 and config.gepa.temperature <= 0:
        yield "gepa.dev_samples > 1 needs gepa.temperature > 0: greedy samples are all alike"
    if config.validation.samples > 1 and config.validation.temperature <= 0:
        yield "validation.samples > 1 needs validation.temperature > 0: greedy samples are all alike"


def _engine(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if not rollout.importance_cap >= 1:
        yield f"rollout.importance_cap={rollout.importance_cap} must be at least 1"
    if isinstance(rollout, schema.VllmRollout) and not 0 < rollout.gpu_memory_utilization <= 1:
        yield f"rollout.gpu_memory_utilization={rollout.gpu_memory_utilization} must lie in (0, 1]"
    on_gpu = isinstance(rollout, schema.VllmRollout) and config.trainer.accelerator == "gpu"
    if on_gpu and config.tuning.kind == "lora" and config.model.dtype == "float32":
        yield "vLLM multiplies adapters on a GPU in half precision alone: use model.dtype=bfloat16, or rollout=hf"
    if isinstance(rollout, schema.VllmServerRollout):
        yield from server_problems(rollout.urls)
        if config.tuning.kind == "full":
            yield "rollout=vllm_server hands adapters over, not whole weights: use tuning=lora, or rollout=vllm"


def _method(config: Config) -> Iterator[str]:
    k, kept = config.policy.rollouts, config.hard_set.plain_rollouts
    if config.hard_set.tau > k:
        yield f"hard_set.tau={config.hard_set.tau} exceeds policy.rollouts={k}: every question would be hard"
    if not 0 <= kept < k:
        yield f"hard_set.plain_rollouts={kept} must lie in [0, policy.rollouts) = [0, {k})"
    if config.hard_set.rule == "plain_probe" and kept == 0 and config.gepa.variant != "off":
        yield "hard_set.rule=plain_probe needs hard_set.plain_rollouts >= 1, or use hard_set=official"
    if config.gepa.same_template and config.policy.baseline == "template":
        yield "policy.baseline=template with gepa.same_template=true is the group baseline: use policy.baseline=group"
    if config.policy.layout != "padded" and config.model.attn_implementation != "sdpa":
        yield (
            f"policy.layout={config.policy.layout} needs model.attn_implementation=sdpa "
            f"(it is {config.model.attn_implementation}): use that, or policy.layout=padded"
        )


def _data(config: Config) -> Iterator[str]:
    if "{question}" not in config.data.prompt:
        yield "data.prompt must contain {question}"
    for key in ("path", "val_path"):
        path = getattr(config.data, key, None) if isinstance(config.data, schema.JsonlData) else None
        if path and not Path(path).expanduser().is_file():
            yield f"data.{key}={path} is no file: give data.{key}=<a .jsonl file>"
    if config.reward.kind == "function" and not config.reward.function:
        yield "reward.kind=function needs reward.function=<package.module.function>"
    if config.reward.kind == "reasoning_gym" and not isinstance(config.data, schema.ReasoningGymData):
        yield "reward=reasoning_gym scores reasoning-gym questions only: use reward=math, exact or function"


def passwords(config: Config | EvaluateConfig) -> Iterator[str]:
    """A problem for every address with a user or password in it, wherever it stands: ``config.yaml`` would keep it."""
    for key, value in flat(asdict(config)).items():
        if _PASSWORD.search(str(value)):
            yield (
                f"{key} holds a password, which config.yaml would keep: give the address without it, and a key by the "
                "name of an environment variable (reflector.api_key_env, rollout.api_key_env)"
            )


def _reflector(config: Config) -> Iterator[str]:
    reflector = config.reflector
    if config.plan or config.gepa.variant != "teacher_ref" or not isinstance(reflector, schema.OpenAIReflector):
        return
    if not os.environ.get(reflector.api_key_env):
        yield (
            f"the environment variable {reflector.api_key_env} (reflector.api_key_env) is not set: export the key, or "
            "use reflector=strategies for the built-in teacher"
        )
