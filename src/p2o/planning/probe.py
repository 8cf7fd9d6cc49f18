"""A short measurement: one round, or a part of it, on the real model and the real questions. Nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2o.algorithm.policy_step import Objective, update
from p2o.config.schema import Config, HfRollout
from p2o.planning.counts import Counts
from p2o.policy.model import load_policy
from p2o.policy.optimizer import adamw
from p2o.profile import elapsed
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks.rounds import rounds_of_epoch
from p2o.types import (
    PLAIN,
    Generation,
    Grade,
    Group,
    Outcome,
    Problem,
    Prompt,
    Rollout,
    SamplingParams,
    derive_seed,
)

LARGEST = 1_000_000_000
"""Parameters of a model that is still probed."""
ROLLOUTS = 96
TOKENS = 64
"""Bounds of a probe, so that it takes seconds."""


@dataclass(frozen=True)
class Pace:
    """Seconds of each part of the work. ``tokens_per_rollout`` is the mean, or the limit where the probe cut it."""

    sync: float
    per_generated_token: float
    per_trained_token: float
    tokens_per_rollout: float
    cut: bool

    def seconds(self, counts: Counts) -> float:
        """A run's time, grading and logging left out, where every hard set is as large as it can be."""
        rollouts = counts.policy.rollouts + counts.validation.rollouts
        evaluations = counts.prompt_phases * counts.budget
        generated = (rollouts + evaluations) * self.tokens_per_rollout
        trained = counts.policy.rollouts * self.tokens_per_rollout
        return counts.rounds * self.sync + generated * self.per_generated_token + trained * self.per_trained_token


def probe(config: Config, problems: Sequence[Problem]) -> Pace:
    """Generate and update once; rewards alternate, so that every group is trained on."""
    assert isinstance(config.rollout, HfRollout)
    policy = load_policy(config.model, config.tuning, seed=config.seed)
    renderer = PromptRenderer(
        policy.tokenizer, config.data.prompt, config.rollout.max_prompt_tokens, config.model.chat_template_kwargs
    )
    k = config.policy.rollouts
    asked = rounds_of_epoch(problems, config, 0)[0][: max(1, ROLLOUTS // k)]
    prompts = [
        Prompt(renderer.render(problem.question), derive_seed(config.seed, "probe", problem.id, index))
        for problem in asked
        for index in range(k)
    ]
    limit = min(TOKENS, config.rollout.max_new_tokens)
    engine = HfEngine(policy, config.rollout)
    _, sync = elapsed(lambda: engine.sync(0))
    sampling = SamplingParams(config.rollout.temperature, limit, config.rollout.top_p)
    engine.generate(prompts[:k], SamplingParams(config.rollout.temperature, 2), version=0)  # the first call is slow
    made, generating = elapsed(lambda: engine.generate(prompts, sampling, version=0))
    engine.close()
    groups = [_group(problem, prompts[i * k].tokens, made[i * k : (i + 1) * k]) for i, problem in enumerate(asked)]
    optimizer = adamw(policy, config.tuning.learning_rate, config.policy)
    objective = Objective.of(config)
    _, training = elapsed(
        lambda: update(policy, optimizer, None, [objective.advantages(group) for group in groups], objective, seed=0)
    )
    tokens = sum(len(generation.tokens) for generation in made)
    cut = limit < config.rollout.max_new_tokens
    mean = config.rollout.max_new_tokens if cut else tokens / len(made)
    return Pace(sync, generating / tokens, training / tokens, mean, cut)


def _group(problem: Problem, prompt: tuple[int, ...], made: Sequence[Generation]) -> Group:
    rollouts = [
        Rollout(
            problem_id=problem.id,
            template_id=PLAIN,
            index=index,
            prompt_tokens=prompt,
            tokens=generation.tokens,
            logprobs=generation.logprobs,
            text=generation.text,
            finish_reason=generation.finish_reason,
            grade=Grade(Outcome.CORRECT if index % 2 else Outcome.WRONG, float(index % 2)),
            policy_version=0,
        )
        for index, generation in enumerate(made)
    ]
    return Group(problem, prompt, tuple(rollouts))
