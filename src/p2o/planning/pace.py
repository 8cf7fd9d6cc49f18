"""A short measurement: one round, or a part of it, on the real model and the real questions. Nothing is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from p2o.algorithm.policy_step import Objective, update
from p2o.config.schema import Config, HfRollout
from p2o.planning.counts import Counts
from p2o.policy.model import load_policy
from p2o.policy.optimizer import adamw
from p2o.profile import elapsed
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.rollout.ledger import Ledger
from p2o.rollout.prompts import PromptRenderer
from p2o.rollout.sampler import Sampler
from p2o.tasks.rounds import rounds_of_epoch
from p2o.types import Grade, Group, Outcome, Phase, Problem, Request, Rollout, SamplingParams, derive_seed

LARGEST = 1_000_000_000
"""Parameters of the largest model that is measured."""
ROLLOUTS, TOKENS = 96, 64
"""Bounds of a measurement, so that it takes seconds."""


@dataclass(frozen=True)
class Pace:
    """Seconds of each part of the work. ``tokens_per_rollout`` is the measured mean, or the limit if ``cut``."""

    sync: float
    per_generated_token: float
    per_trained_token: float
    tokens_per_rollout: float
    cut: bool

    def seconds(self, counts: Counts) -> float:
        """A run's time without grading and logging, if every hard set is as large as it can be."""
        trained = counts.work[Phase.POLICY].rollouts * self.tokens_per_rollout
        other = counts.work[Phase.VALIDATION].rollouts + counts.prompt_phases * counts.budget
        generated = trained + other * self.tokens_per_rollout
        return counts.rounds * self.sync + generated * self.per_generated_token + trained * self.per_trained_token


class _Alternating:
    """Calls every second answer to a question correct, so that every group is trained on."""

    def __init__(self) -> None:
        self._seen = Counter[str]()

    def submit(self, problem: Problem, text: str) -> Future[Grade]:
        self._seen[problem.id] += 1
        correct = self._seen[problem.id] % 2
        grade: Future[Grade] = Future()
        grade.set_result(Grade(Outcome.CORRECT if correct else Outcome.WRONG, float(correct)))
        return grade


def measure(config: Config, problems: Sequence[Problem], renderer: PromptRenderer) -> Pace:
    """Generate and update once; takes ``rollout=hf`` on a CPU."""
    assert isinstance(config.rollout, HfRollout)
    policy = load_policy(config.model, config.tuning, seed=config.seed, fused_lora=config.policy.fused_lora)
    engine, k = HfEngine(policy, config.rollout), config.policy.rollouts
    sampler = Sampler(engine, renderer, _Alternating(), Ledger())
    asked = rounds_of_epoch(problems, config, 0)[0][: max(1, ROLLOUTS // k)]
    requests = [Request(one, i, derive_seed(config.seed, "probe", one.id, i)) for one in asked for i in range(k)]
    limit = min(TOKENS, config.rollout.max_new_tokens)

    def sample(requests: Sequence[Request], tokens: int) -> list[Rollout]:
        sampling = SamplingParams(config.rollout.temperature, tokens, config.rollout.top_p)
        return sampler.sample(requests, sampling, phase=Phase.POLICY, version=0)

    _, sync = elapsed(lambda: engine.sync(0))
    sample(requests[:k], 2)  # the first call is slow
    made, generating = elapsed(lambda: sample(requests, limit))
    engine.close()
    groups = [Group(one, made[i * k].prompt_tokens, tuple(made[i * k : (i + 1) * k])) for i, one in enumerate(asked)]
    optimizer = adamw(policy, config.tuning.learning_rate, config.policy)
    objective = Objective.of(config)
    _, training = elapsed(
        lambda: update(policy, optimizer, None, [objective.advantages(group) for group in groups], objective, seed=0)
    )
    tokens = sum(len(rollout.tokens) for rollout in made)
    cut = limit < config.rollout.max_new_tokens
    mean = config.rollout.max_new_tokens if cut else tokens / len(made)
    return Pace(sync, generating / tokens, training / tokens, mean, cut)
