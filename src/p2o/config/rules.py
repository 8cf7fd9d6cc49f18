"""Rules across keys. Each broken rule is one line that names the key and the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from p2o.config.evaluation import EvaluateConfig
from p2o.config.identity import flat
from p2o.config.key import out_of_range
from p2o.config.schema import Config, JsonlData, OpenAIReflector, ReasoningGymData, VllmRollout, VllmServerRollout
from p2o.errors import InputError

_PASSWORD = re.compile(r"://[^/\s]*@")


class ConfigError(InputError):
    """The configuration cannot run. ``problems`` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def validate(config: Config | EvaluateConfig) -> list[str]:
    """Every problem of a configuration, empty if it can run. Nothing heavy is imported or started."""
    if isinstance(config, Config):
        own = [
            *_step(config),
            *_sampling(config),
            *_engine(config),
            *_devices(config),
            *_hard_set(config),
            *_parts(config),
        ]
    else:
        own = list(_evaluation(config))
    return [*out_of_range(config), *own, *_reward(config), *_servers(config), *_passwords(config)]


def is_address(text: str) -> bool:
    """Whether a text is the address of an HTTP server."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or half a bracket
        return False


def _step(config: Config) -> Iterator[str]:
    policy, attention = config.policy, config.model.attn_implementation
    if len(policy.betas) != 2:
        yield f"policy.betas={policy.betas}: give two numbers, such as [0.9,0.999]"
    if 0 < policy.dual_clip < 1:
        yield f"policy.dual_clip={policy.dual_clip}: give at least 1, or 0 for none"
    if policy.updates_per_round > policy.questions_per_round:
        yield "policy.updates_per_round is larger than policy.questions_per_round: an update needs a question"
    if policy.layout != "padded" and attention != "sdpa":
        yield (
            f"policy.layout={policy.layout} needs model.attn_implementation=sdpa (it is {attention}): use that, or "
            "policy.layout=padded"
        )


def _sampling(config: Config) -> Iterator[str]:
    rollout, kind = config.rollout, config.distillation.kind
    if rollout.temperature == 0:
        yield "rollout.temperature must be above 0: a greedy group has equal rewards and teaches nothing"
    if rollout.top_p < 1 and kind in ("importance", "mask"):
        yield (
            f"rollout.top_p={rollout.top_p} biases the ratio that distillation={kind} uses: use rollout.top_p=1 or "
            "distillation=replace"
        )
    if rollout.top_p < 1 and rollout.importance != "off":
        yield (
            f"rollout.top_p={rollout.top_p} biases rollout.importance={rollout.importance}: the engine's log-probs are "
            "those of the truncated distribution; use rollout.top_p=1 or rollout.importance=off"
        )
    if config.gepa.dev_samples > 1 and config.gepa.temperature == 0:
        yield "gepa.dev_samples > 1 needs gepa.temperature > 0: greedy samples are all alike"
    if config.validation.samples > 1 and config.validation.temperature == 0:
        yield "validation.samples > 1 needs validation.temperature > 0: greedy samples are all alike"


def _engine(config: Config) -> Iterator[str]:
    rollout, tuning, on_gpu = config.rollout, config.tuning.kind, config.trainer.accelerator == "gpu"
    if isinstance(rollout, VllmRollout) and on_gpu and tuning == "lora" and config.model.dtype == "float32":
        yield "on a GPU vLLM applies adapters in half precision only: use model.dtype=bfloat16, or rollout=hf"
    if isinstance(rollout, VllmServerRollout) and tuning == "full":
        yield "rollout=vllm_server loads adapters, not whole weights: use tuning=lora, or rollout=vllm"


def _devices(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.devices != "auto" and not (isinstance(trainer.devices, int) and trainer.devices > 0):
        yield f"trainer.devices={trainer.devices}: give a number of at least 1, or auto"
    if trainer.strategy == "fsdp2" and config.rollout.kind != "hf":
        yield f"trainer.strategy=fsdp2 with rollout={config.rollout.kind}: use rollout=hf, or trainer.strategy=ddp"


def _hard_set(config: Config) -> Iterator[str]:
    k, kept, hard_set = config.policy.rollouts, config.hard_set.plain_rollouts, config.hard_set
    if hard_set.tau > k:
        yield f"hard_set.tau={hard_set.tau} exceeds policy.rollouts={k}: every question would be hard"
    if kept >= k:
        yield f"hard_set.plain_rollouts={kept} must be below policy.rollouts={k}"
    if hard_set.rule == "plain_probe" and kept == 0 and config.gepa.variant != "off":
        yield "hard_set.rule=plain_probe needs hard_set.plain_rollouts >= 1, or use hard_set=official"
    if config.gepa.same_template and config.policy.baseline == "template":
        yield "policy.baseline=template with gepa.same_template=true is the group baseline: use policy.baseline=group"


def _parts(config: Config) -> Iterator[str]:
    data, reflector = config.data, config.reflector
    if "{question}" not in data.prompt:
        yield "data.prompt must contain {question}"
    files = {"path": data.path, "val_path": data.val_path} if isinstance(data, JsonlData) else {}
    for key, path in files.items():
        if path and not Path(path).expanduser().is_file():
            yield f"data.{key}={path} is not a file: give data.{key}=<a .jsonl file>"
    asked = config.gepa.variant == "teacher_ref" and not config.plan
    if asked and isinstance(reflector, OpenAIReflector) and not os.environ.get(reflector.api_key_env):
        yield (
            f"the environment variable {reflector.api_key_env} (reflector.api_key_env) is not set: export the key, or "
            "use reflector=strategies for the built-in teacher"
        )


def _evaluation(config: EvaluateConfig) -> Iterator[str]:
    benchmarks, temperature = config.benchmarks, config.rollout.temperature
    if not (benchmarks.sets or benchmarks.files or benchmarks.runs):
        yield "there are no questions: give benchmarks=[gsm8k,...] or benchmarks.files=[<file.jsonl>]"
    if "{question}" not in config.prompt:
        yield "prompt must contain {question}"
    if temperature != 0:
        yield f"rollout.temperature={temperature} is ignored here: give temperature={temperature}"
    if (config.samples or 1) > 1 and config.temperature == 0:
        yield f"samples={config.samples} needs temperature > 0: greedy answers are all alike"
    if not config.pass_at:
        yield "pass_at=[]: give values of k, such as [1,4,16]"


def _reward(config: Config | EvaluateConfig) -> Iterator[str]:
    if isinstance(config, Config):
        foreign = not isinstance(config.data, ReasoningGymData)
    else:
        foreign = bool(config.benchmarks.sets or config.benchmarks.files)
    if config.reward.kind == "function" and not config.reward.function:
        yield "reward.kind=function needs reward.function=<package.module.function>"
    if config.reward.kind == "reasoning_gym" and foreign:
        yield "reward=reasoning_gym scores reasoning-gym questions only: use reward=math, exact or function"


def _servers(config: Config | EvaluateConfig) -> Iterator[str]:
    urls = config.rollout.urls if isinstance(config.rollout, VllmServerRollout) else None
    if urls == []:
        yield "rollout=vllm_server needs rollout.urls=[http://HOST:PORT,...]: docs/rollout.md says how to start one"
    yield from (
        f"rollout.urls: {url} is not an address, use http(s)://HOST:PORT" for url in urls or () if not is_address(url)
    )


def _passwords(config: Config | EvaluateConfig) -> Iterator[str]:
    for key, value in flat(asdict(config)).items():
        if _PASSWORD.search(str(value)):
            yield (
                f"{key} holds a password, which config.yaml would keep: give the address without it, and name an "
                "environment variable for the key (reflector.api_key_env, rollout.api_key_env)"
            )
