"""A configuration's plan: how much work it is, what it takes, how long, and what cannot work."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from p2o.config.schema import Config, HfRollout, HubData, OpenAIReflector, VllmRollout
from p2o.job import within_context
from p2o.logs import quiet_libraries
from p2o.planning import memory
from p2o.planning.counts import Counts, Questions, count
from p2o.planning.memory import Part
from p2o.planning.probe import LARGEST, Pace, probe
from p2o.planning.sizes import ModelSize, installed_memory, model_size
from p2o.policy.builders import ModelError, folder_of, load_tokenizer
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks import load_problems
from p2o.types import Problem


@dataclass
class Plan:
    """What ``debug=plan`` tells. None stands for what could not be found out; ``notes`` say why."""

    config: Config
    questions: Questions
    counts: Counts
    size: ModelSize | None = None
    device: str = "cpu"
    memory: list[Part] = field(default_factory=list)
    disk: list[Part] = field(default_factory=list)
    capacity: dict[str, int | None] = field(default_factory=dict)
    """Bytes that there are of cpu, gpu and disk on this machine."""
    pace: Pace | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(config: Config) -> Plan:
    """Plan a run. Nothing is written but the folder of a small model that is built at its first use.

    Raises what a run raises for data that cannot be used.
    """
    quiet_libraries()
    torch.set_num_threads(config.trainer.threads or os.cpu_count() or 1)
    notes: list[str] = []
    size = _size(config, notes)
    questions, problems = _questions(config, size, notes)
    plan = Plan(config, questions, count(config, questions), size, _device(config), notes=notes)
    plan.capacity = _capacities(config)
    if size is not None:
        capacity = plan.capacity[plan.device]
        plan.memory = memory.memory(config, size, questions, device=plan.device, capacity=capacity)
        plan.disk = memory.disk(config, size, plan.counts)
    plan.warnings = list(_warnings(plan))
    reason = _no_probe(plan, problems)
    if reason is None:
        plan.pace = probe(config, problems)
    else:
        notes.append(
            f"no estimate of time: {reason}. A few rounds on the machine that is meant measure it: the rounds above "
            "times time/rollout + time/update of metrics.jsonl, and the prompt phases"
        )
    return plan


def _size(config: Config, notes: list[str]) -> ModelSize | None:
    try:
        return model_size(config.model, config.tuning)
    except ModelError as error:
        notes.append(str(error))
        return None


def _questions(config: Config, size: ModelSize | None, notes: list[str]) -> tuple[Questions, Sequence[Problem]]:
    """Counted on the data itself where reading it costs nothing, else as configured."""
    limit = config.rollout.max_prompt_tokens - config.gepa.max_template_tokens
    data = config.data
    if isinstance(data, HubData) and not Path(data.dataset).expanduser().exists():
        notes.append(
            f"{data.dataset} is not read for a plan: data.train_size={data.train_size} and data.val_size="
            f"{data.val_size} are taken as they are, and prompts as long as they may be"
        )
        if data.train_size is None:
            notes.append("data.train_size is not set: one round an epoch is counted; set it for a plan")
        return Questions(data.train_size or config.policy.questions_per_round, data.val_size or 0, limit, False), ()
    problems = load_problems(config.data, config.reward)
    renderer = _renderer(config, notes)
    if renderer is None:
        return Questions(len(problems.train), len(problems.val), limit, False), problems.train
    context = size.context if size is not None else None
    train = within_context(problems.train, renderer, context, config, "training")
    val = within_context(problems.val, renderer, context, config, "validation")
    longest = max(renderer.length(problem.question) for problem in (*train, *val))
    return Questions(len(train), len(val), longest, True), train


def _renderer(config: Config, notes: list[str]) -> PromptRenderer | None:
    """None where the tokenizer is not on this machine."""
    try:
        if not folder_of(config.model).is_dir():
            raise ModelError(f"model.path={config.model.path} is no folder on this machine")
        tokenizer = load_tokenizer(config.model)
    except ModelError as error:
        notes.append(f"prompts count as long as they may be, for want of the tokenizer: {error}")
        return None
    return PromptRenderer(
        tokenizer, config.data.prompt, config.rollout.max_prompt_tokens, config.model.chat_template_kwargs
    )


def _device(config: Config) -> str:
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "cpu" if accelerator == "cpu" else "gpu"


def _capacities(config: Config) -> dict[str, int | None]:
    folder = Path(config.run_dir).expanduser().absolute()
    while not folder.is_dir():
        folder = folder.parent
    return {
        "cpu": installed_memory(),
        "gpu": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None,
        "disk": shutil.disk_usage(folder).free,
    }


def _warnings(plan: Plan) -> Iterator[str]:
    config, size, counts = plan.config, plan.size, plan.counts
    yield from _does_not_fit(plan)
    if plan.device == "gpu" and plan.capacity["gpu"] is None:
        yield (
            f"trainer.accelerator={config.trainer.accelerator}, and this machine has no GPU that torch can use: the "
            "run would not start here; what it needs there is above"
        )
    if size is not None and size.context is not None:
        longest = memory.sequence(config, plan.questions)
        if longest > size.context:
            yield (
                f"a sequence may have {longest:,} tokens and the model attends to {size.context:,}: lower "
                "rollout.max_new_tokens or rollout.max_prompt_tokens"
            )
    if config.gepa.variant != "off" and not counts.prompt_phases:
        yield (
            f"no template will be evolved: trainer.epochs={config.trainer.epochs}, {plan.questions.train} questions; "
            f"it takes two epochs and hard_set.min_size={config.hard_set.min_size} questions that are answered in one"
        )
    if isinstance(config.rollout, VllmRollout) and importlib.util.find_spec("vllm") is None:
        yield "rollout=vllm, and vLLM is not installed here: docs/rollout.md says how, or take rollout=hf"
    reflector = config.reflector
    asks = config.gepa.variant == "teacher_ref" and isinstance(reflector, OpenAIReflector)
    if asks and not os.environ.get(reflector.api_key_env):  # type: ignore[attr-defined]
        yield f"the environment variable {reflector.api_key_env} is not set: the run will not start"  # type: ignore[attr-defined]
    if any(limit is not None for limit in vars(config.budget).values()):
        limits = ", ".join(
            f"budget.{name}={limit:,}" for name, limit in vars(config.budget).items() if limit is not None
        )
        yield f"the run ends earlier where it reaches {limits}"


def _does_not_fit(plan: Plan) -> Iterator[str]:
    for device, capacity in plan.capacity.items():
        parts = plan.disk if device == "disk" else plan.memory
        needed = memory.peak(parts, device)
        if capacity is None or needed <= capacity:
            continue
        largest = max((part for part in parts if part.device == device), key=lambda part: part.bytes)
        yield (
            f"{device}: {gib(needed)} may be needed and there are {gib(capacity)}; the largest part is "
            f"{largest.name} ({gib(largest.bytes)}). {MENDS[device]}"
        )


MENDS = {
    "cpu": "tuning=lora, a smaller policy.micro_batch_tokens, rollout.max_rows or reward.memory_mb take less.",
    "gpu": "tuning=lora, a smaller policy.micro_batch_tokens or rollout.max_new_tokens take less.",
    "disk": "tuning=lora takes less; run_dir=<folder on a larger disk> has more.",
}


def gib(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _no_probe(plan: Plan, problems: Sequence[Problem]) -> str | None:
    """Why nothing can be measured here; None where it can."""
    config, size = plan.config, plan.size
    if size is None or not folder_of(config.model).is_dir():
        return "the model is not on this machine"
    if size.parameters > LARGEST:
        return f"a model of more than {LARGEST:,} parameters is not loaded for a plan"
    if not problems or not plan.questions.exact:
        return "the questions were not read"
    if plan.device != "cpu" or not isinstance(config.rollout, HfRollout):
        return "the probe is for trainer=cpu rollout=hf"
    if memory.peak(plan.memory, "cpu") > (plan.capacity["cpu"] or 0):
        return "the run may not fit into memory"
    return None
