"""A configuration's plan: how much work it is, what it takes, and what cannot work."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from p2o.config.schema import Config, HubData, OpenAIReflector, VllmRollout
from p2o.logs import quiet_libraries
from p2o.planning.counts import Counts, Questions, count
from p2o.planning.footprint import Part, disk, memory, peak, sequence
from p2o.planning.sizes import ModelSize, model_size
from p2o.policy.builders import ModelError, folder_of, load_tokenizer
from p2o.rollout.lengths import within_context
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks import load_problems

FIXES = {
    "cpu": "tuning=lora, a smaller policy.micro_batch_tokens, rollout.max_rows or reward.memory_mb take less.",
    "gpu": "tuning=lora, trainer.strategy=fsdp2 on several devices, a smaller policy.micro_batch_tokens or "
    "rollout.max_new_tokens take less.",
    "disk": "tuning=lora takes less; run_dir=<folder on a larger disk> has more.",
}
TIME = (
    "The time is not estimated. Measure it on the machine you plan for: in place of debug=plan give "
    "trainer.rounds_per_epoch=3 trainer.epochs=2 run_dir=<another folder>, and multiply the rounds above by "
    "time/rollout + time/update of its metrics.jsonl; validations and prompt phases come on top"
)


@dataclass(frozen=True)
class Plan:
    """What ``debug=plan`` tells. None stands for what could not be found out; ``notes`` say why, and what to fix."""

    config: Config
    questions: Questions
    counts: Counts
    size: ModelSize | None
    parts: Sequence[Part]
    """Of memory and disk; none without a size."""
    capacity: Mapping[str, int | None]
    """Bytes of gpu, cpu and disk on this machine."""
    notes: Sequence[str]


def make_plan(config: Config) -> Plan:
    """Plan a run. Nothing is written except the folder of a small model that is built at its first use.

    Raises what a run raises for data that cannot be used.
    """
    quiet_libraries()
    notes: list[str] = []
    size: ModelSize | None = None
    try:
        size = model_size(config.model, config.tuning, fused_lora=config.policy.fused_lora)
    except ModelError as error:
        notes.append(f"the model's size is not known, a folder with its config.json is enough: {error}")
    questions = _questions(config, size.context if size else None, notes)
    counts, capacity, parts = count(config, questions), _capacity(config), []
    if size is not None:
        parts = [*memory(config, size, questions, capacity[config.trainer.accelerator]), *disk(config, size, counts)]
    warnings = [*_warnings(config, questions, counts, size, capacity), *_too_little(parts, capacity)]
    notes += [TIME, *_ends_earlier(config), *(f"WARNING: {warning}" for warning in warnings)]
    return Plan(config, questions, counts, size, parts, capacity, notes)


def _questions(config: Config, context: int | None, notes: list[str]) -> Questions:
    """Counted on the data itself if reading it costs nothing, else as configured."""
    data, limit = config.data, config.rollout.max_prompt_tokens - config.gepa.max_template_tokens
    if isinstance(data, HubData) and not Path(data.dataset).expanduser().exists():
        notes.append(
            f"{data.dataset} is not read for a plan: data.train_size={data.train_size} and data.val_size="
            f"{data.val_size} are taken as they are, and prompts count as long as they may be"
        )
        if data.train_size is None:
            notes.append("data.train_size is not set: the plan counts one round per epoch; set it")
        return Questions(data.train_size or config.policy.questions_per_round, data.val_size or 0, limit, exact=False)
    problems = load_problems(data, config.reward)
    try:
        if not folder_of(config.model).is_dir():
            raise ModelError(f"model.path={config.model.path} is not a folder on this machine")
        tokenizer = load_tokenizer(config.model)
    except ModelError as error:
        notes.append(f"without the tokenizer, prompts count as long as they may be: {error}")
        return Questions(len(problems.train), len(problems.val), limit, exact=False)
    kwargs = config.model.chat_template_kwargs
    renderer = PromptRenderer(tokenizer, data.prompt, config.rollout.max_prompt_tokens, kwargs)
    train = within_context(problems.train, renderer, context, config, "training")
    val = within_context(problems.val, renderer, context, config, "validation")
    longest = max(renderer.length(problem.question) for problem in (*train, *val))
    return Questions(len(train), len(val), longest, exact=True)


def _capacity(config: Config) -> dict[str, int | None]:
    run_dir = Path(config.run_dir).expanduser().absolute()
    return {
        "gpu": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None,
        "cpu": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk": shutil.disk_usage(next(folder for folder in (run_dir, *run_dir.parents) if folder.is_dir())).free,
    }


def _too_little(parts: Sequence[Part], capacity: Mapping[str, int | None]) -> Iterator[str]:
    for device, there in capacity.items():
        needed = peak(parts, device)
        if there is not None and needed > there:
            largest = max((part for part in parts if part.device == device), key=lambda part: part.bytes)
            yield (
                f"{device}: {gib(needed)} may be needed and there are {gib(there)}; the largest part is "
                f"{largest.name} ({gib(largest.bytes)}). {FIXES[device]}"
            )


def _ends_earlier(config: Config) -> Iterator[str]:
    limits = [f"budget.{name}={limit:,}" for name, limit in vars(config.budget).items() if limit is not None]
    if limits:
        yield f"The run ends earlier if it reaches {' or '.join(limits)}"


def _warnings(
    config: Config, questions: Questions, counts: Counts, size: ModelSize | None, capacity: Mapping[str, int | None]
) -> Iterator[str]:
    context, longest, reflector = size.context if size else None, sequence(config, questions), config.reflector
    if config.trainer.accelerator == "gpu" and capacity["gpu"] is None:
        yield "trainer.accelerator=gpu, and torch finds no GPU here: the run needs another machine, or trainer=cpu"
    if isinstance(config.rollout, VllmRollout) and importlib.util.find_spec("vllm") is None:
        yield "rollout=vllm, and vLLM is not installed here: docs/rollout.md says how, or take rollout=hf"
    if context is not None and longest > context:
        yield (
            f"a sequence may have {longest:,} tokens and the model attends to {context:,}: lower "
            "rollout.max_new_tokens or rollout.max_prompt_tokens"
        )
    if config.gepa.variant != "off" and not counts.prompt_phases:
        yield (
            f"no template will be evolved: trainer.epochs={config.trainer.epochs}, {questions.train} questions; it "
            f"takes two epochs and hard_set.min_size={config.hard_set.min_size} questions answered in one"
        )
    key = reflector.api_key_env if isinstance(reflector, OpenAIReflector) else None
    if config.gepa.variant == "teacher_ref" and key is not None and not os.environ.get(key):
        yield f"the environment variable {key} is not set: the run will not start"


def gib(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
