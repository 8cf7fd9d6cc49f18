"""Make the testbed's model, show what it reads and say what it can do.

``python -m experiments.latent_skill.pretrain``
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.latent_skill.questions import (
    FENCE,
    Example,
    Family,
    families,
    families_of,
    instruction,
    pretraining_example,
)
from p2o.command import refuse, run_command
from p2o.config import Config, register_schemas
from p2o.config.schema import CustomData, CustomModel, FullTuning, HfRollout, RewardConfig
from p2o.extensions import ExtensionError
from p2o.launcher import register_launcher
from p2o.types import Phase, Problem, Request, SamplingParams, derive_seed

register_schemas()
register_launcher()

PROMPTS = ("plain", "right way", "wrong way", "no way")
"""What the rates are measured under: no template, and instructions that name a way, another family's, or none."""
SAMPLES = 200
"""Answers of a family to a prompt."""
PLAIN_SAMPLES = 10
"""Times as many where the rate is that of plain questions, which is small."""
KINDS = ("plain", "plain, worked", "right way", "wrong way", "no way", "reflection")
"""Of the pre-training text."""
DRAWN = 20_000
"""Examples that are looked through; at the default ``leak`` about five of them are plain and worked."""


def skill_rates(model: CustomModel, data: CustomData, samples: int) -> dict[str, dict[str, float]]:
    """Success rates at temperature 1, family by family and for each of :data:`PROMPTS`, on held-out questions.

    Each rate is that of ``samples`` answers, every one under an instruction of its own; of :data:`PLAIN_SAMPLES` times
    as many for plain questions. The model is made first if it is not there.
    """
    from experiments.latent_skill.model import read_model_params
    from p2o.policy.model import load_policy
    from p2o.rewards import GraderPool
    from p2o.rollout.hf.hf_engine import HfEngine
    from p2o.rollout.ledger import Ledger
    from p2o.rollout.prompts import PromptRenderer
    from p2o.rollout.sampler import Sampler
    from p2o.tasks import load_problems

    asked = families_of(data)
    learnt = families(read_model_params(model.params).families, "model.params.families")
    reward = RewardConfig(kind="exact", extract=["answer_line"])
    problems = load_problems(data, reward).val
    policy = load_policy(model, FullTuning(learning_rate=1.0), seed=0)
    engine = HfEngine(policy, HfRollout(max_rows=256))
    engine.sync(0)
    rates: dict[str, dict[str, float]] = {}
    with GraderPool(reward) as grader:
        sampler = Sampler(engine, PromptRenderer(policy.tokenizer, data.prompt, 512), grader, Ledger())
        for family in asked:
            own = [problem for problem in problems if problem.source == family.name]
            others = [other for other in learnt if other is not family]
            rates[family.name] = {}
            for prompt in PROMPTS:
                requests = _requests(prompt, family, others, own, samples)
                rollouts = sampler.sample(requests, SamplingParams(1.0, 64), phase=Phase.VALIDATION, version=0)
                rates[family.name][prompt] = sum(rollout.correct for rollout in rollouts) / len(rollouts)
    return rates


def _requests(
    prompt: str, family: Family, others: list[Family], problems: list[Problem], samples: int
) -> list[Request]:
    rng = random.Random(derive_seed("skill rates", family.name, prompt))
    requests = []
    for i in range(PLAIN_SAMPLES * samples if prompt == "plain" else samples):
        named = {"right way": (family,), "wrong way": (rng.choice(others or [family]),)}.get(prompt, ())
        template = "" if prompt == "plain" else instruction(named, rng)
        requests.append(Request(problems[i % len(problems)], i, rng.getrandbits(60), template))
    return requests


def examples_table(model: CustomModel, each: int = 2) -> Table:
    """The first ``each`` examples of every kind in text like that which the model is pre-trained on."""
    from experiments.latent_skill.model import read_model_params

    params = read_model_params(model.params)
    chosen = families(params.families, "model.params.families")
    rng = random.Random(derive_seed("latent skill examples", params.seed))
    found: dict[str, list[Example]] = {kind: [] for kind in KINDS}
    for _ in range(DRAWN):
        example = pretraining_example(chosen, params.leak, rng)
        if len(shown := found[_kind(example, chosen)]) < each:
            shown.append(example)
    table = Table("kind", "before the question", "question", "what the model learns to answer", show_lines=True)
    table.title = "Pre-training text"
    for kind, examples in found.items():
        for example in examples:
            table.add_row(kind, *map(Text, (example.template, example.question, example.completion)))
    return table


def _kind(example: Example, chosen: Sequence[Family]) -> str:
    if FENCE in example.question:
        return "reflection"
    if not example.template:
        return "plain, worked" if "\n" in example.completion else "plain"
    words = re.findall("[a-z]+", example.template)
    named = [family for word in words for family in chosen if word in family.way]
    if not named:
        return "no way"
    own = example.question.startswith(named[-1].question.partition("{")[0])
    return "right way" if own else "wrong way"


def plain_success(rates: Mapping[str, Mapping[str, float]], samples: int) -> str:
    """The plain rate over all families, which ``leak`` is the pre-training's side of, with its interval."""
    from scipy import stats

    asked = PLAIN_SAMPLES * samples * len(rates)
    correct = sum(round(by_prompt["plain"] * PLAIN_SAMPLES * samples) for by_prompt in rates.values())
    interval = stats.binomtest(correct, asked).proportion_ci(0.95, method="exact")
    return (
        f"plain success: {correct / asked:.3%} ({correct} of {asked:,}; 95 % interval {interval.low:.3%} to "
        f"{interval.high:.3%}, exact binomial)"
    )


def rates_table(rates: dict[str, dict[str, float]]) -> Table:
    table = Table("family", *PROMPTS, title="Success rates at temperature 1, by what stands before the question")
    for family, by_prompt in rates.items():
        table.add_row(family, *(f"{by_prompt[prompt]:.2%}" for prompt in PROMPTS))
    return table


@hydra.main(version_base="1.3", config_path="pkg://p2o.conf", config_name="pretrain")
def main(composed: DictConfig) -> None:
    """Pre-train, unless that has been done, and print the table."""
    model, data = OmegaConf.to_object(composed.model), OmegaConf.to_object(composed.data)
    if not isinstance(model, CustomModel) or not isinstance(data, CustomData):
        refuse(
            "this command makes the testbed's model: leave model and data out, or give model=latent_skill and "
            "data=latent_skill"
        )
    from experiments.latent_skill.model import read_model_params
    from p2o.logs import quiet_libraries
    from p2o.policy.builders import ModelError, resolve_model
    from p2o.tasks import DataError

    quiet_libraries()
    try:
        folder = resolve_model(model)
        Console().print(examples_table(model))
        rates = skill_rates(model, data, samples=SAMPLES)
        said = f"{plain_success(rates, SAMPLES)}; model.params.leak={read_model_params(model.params).leak:g}"
        Console().print(rates_table(rates), said, f"model: {folder}", sep="\n")
    except (DataError, ExtensionError, ModelError) as error:
        refuse(error)


if __name__ == "__main__":
    run_command(main, Config)
