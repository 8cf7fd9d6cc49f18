"""Make the testbed's model and say what it can do: ``python -m p2o.pretrain model=latent_skill data=latent_skill``."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from p2o.command import refuse, run_command
from p2o.config import Config, register_schemas
from p2o.config.launcher import register_launcher
from p2o.config.schema import FullTuning, HfRollout, LatentSkillData, LatentSkillModel, RewardConfig
from p2o.types import Phase, Problem, Request, SamplingParams, derive_seed

if TYPE_CHECKING:
    from p2o.tasks.latent_skill import Family

register_schemas()
register_launcher()

PROMPTS = ("plain", "right way", "wrong way", "no way")
"""What the rates are measured under: no template, and instructions that name a way, another family's, or none."""


def skill_rates(model: LatentSkillModel, data: LatentSkillData, samples: int) -> dict[str, dict[str, float]]:
    """Success rates at temperature 1, family by family and for each of :data:`PROMPTS`, on held-out questions.

    Each rate is that of ``samples`` answers, every one under an instruction of its own; of ten times as many where the
    rate is that of plain questions, which is small. The model is made first where it is not there.
    """
    from p2o.policy.model import load_policy
    from p2o.rewards import GraderPool
    from p2o.rollout.hf import HfEngine
    from p2o.rollout.ledger import Ledger
    from p2o.rollout.prompts import PromptRenderer
    from p2o.rollout.sampler import Sampler
    from p2o.tasks import load_problems
    from p2o.tasks.latent_skill import families

    reward = RewardConfig(kind="exact", extract=["answer_line"])
    problems = load_problems(data, reward).val
    policy = load_policy(model, FullTuning(learning_rate=1.0), seed=0)
    engine = HfEngine(policy, HfRollout(max_rows=256))
    engine.sync(0)
    rates: dict[str, dict[str, float]] = {}
    with GraderPool(reward) as grader:
        sampler = Sampler(engine, PromptRenderer(policy.tokenizer, data.prompt, 512), grader, Ledger())
        for family in families(data.families, "data.families"):
            own = [problem for problem in problems if problem.source == family.name]
            others = [other for other in families(model.families, "model.families") if other is not family]
            rates[family.name] = {}
            for prompt in PROMPTS:
                requests = _requests(prompt, family, others, own, samples)
                rollouts = sampler.sample(requests, SamplingParams(1.0, 64), phase=Phase.VALIDATION, version=0)
                rates[family.name][prompt] = sum(rollout.correct for rollout in rollouts) / len(rollouts)
    return rates


def _requests(
    prompt: str, family: Family, others: list[Family], problems: list[Problem], samples: int
) -> list[Request]:
    from p2o.tasks.latent_skill import instruction

    rng = random.Random(derive_seed("skill rates", family.name, prompt))
    requests = []
    for i in range(10 * samples if prompt == "plain" else samples):
        named = {"right way": (family,), "wrong way": (rng.choice(others or [family]),)}.get(prompt, ())
        template = "" if prompt == "plain" else instruction(named, rng)
        requests.append(Request(problems[i % len(problems)], i, rng.getrandbits(60), template))
    return requests


def rates_table(rates: dict[str, dict[str, float]]) -> Table:
    table = Table("family", *PROMPTS, title="Success rates at temperature 1, by what stands before the question")
    for family, by_prompt in rates.items():
        table.add_row(family, *(f"{by_prompt[prompt]:.2%}" for prompt in PROMPTS))
    return table


@hydra.main(version_base="1.3", config_path="pkg://p2o.conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Pre-train, unless that has been done, and print the table."""
    model, data = OmegaConf.to_object(composed.model), OmegaConf.to_object(composed.data)
    if not isinstance(model, LatentSkillModel) or not isinstance(data, LatentSkillData):
        refuse("p2o.pretrain makes the testbed's model: give model=latent_skill data=latent_skill")
    from p2o.policy.builders import ModelError, resolve_model
    from p2o.tasks import DataError
    from p2o.training.quiet import quiet_libraries

    quiet_libraries()
    try:
        folder = resolve_model(model)
        Console().print(rates_table(skill_rates(model, data, samples=200)), f"model: {folder}", sep="\n")
    except (DataError, ModelError) as error:
        refuse(error)


if __name__ == "__main__":
    run_command(main, Config)
