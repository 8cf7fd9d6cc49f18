"""From graded groups to what is trained: which groups are live, which prompt a rollout is trained under, with what
advantage. All per-token numbers are flat: sample after sample, token after token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.algorithm.advantages import GroupAdvantages, Signal, group_advantages
from p2o.algorithm.distillation import training_prompt
from p2o.algorithm.losses import preset
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.layout import Sample
from p2o.types import Group, derive_seed


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What one optimizer step trains on. S samples, M completion tokens in all."""

    samples: tuple[Sample, ...]
    problem_ids: tuple[str, ...]
    """[S]"""
    advantages: Tensor
    """[S]"""
    templated: Tensor
    """[S] True where the rollout was sampled under a template."""
    own_prompt: Tensor
    """[S] True where the training prompt is the one that the rollout was sampled under."""
    engine_logprobs: Tensor
    """[M] log-probs that the tokens were sampled with."""

    @property
    def tokens(self) -> int:
        return len(self.engine_logprobs)

    def __len__(self) -> int:
        return len(self.samples)


def training_sets(
    groups: Sequence[Group], config: PolicyConfig, distillation: DistillationConfig, *, seed: int
) -> tuple[list[TrainingSet], Counter[Signal]]:
    """Deal the live groups, in an order drawn from ``seed``, to ``config.updates_per_round`` optimizer steps.

    Returns the steps' sets, some of which are empty where there are fewer live groups than steps, and how many groups
    gave which signal.
    """
    scored = [(g, advantages_of(g, config)) for g in groups]
    signals = Counter(a.signal for _, a in scored)
    live = [(g, a) for g, a in scored if a.signal is Signal.LIVE]
    random.Random(derive_seed("update order", seed)).shuffle(live)
    steps = config.updates_per_round
    return [_training_set(live[i::steps], distillation) for i in range(steps)], signals


def advantages_of(group: Group, config: PolicyConfig) -> GroupAdvantages:
    """The advantages of a group's rollouts under ``policy.loss`` and ``policy.baseline``, and what it teaches."""
    return group_advantages(group, scale_by_std=preset(config.loss).scale_by_std, baseline=config.baseline)


def _training_set(live: Sequence[tuple[Group, GroupAdvantages]], distillation: DistillationConfig) -> TrainingSet:
    samples: list[Sample] = []
    problem_ids: list[str] = []
    advantages: list[float] = []
    templated: list[bool] = []
    own_prompt: list[bool] = []
    engine: list[float] = []
    for group, scored in live:
        for rollout, advantage in zip(group.rollouts, scored.values, strict=True):
            if distillation.positive_only and not rollout.plain and advantage < 0:
                continue
            prompt = training_prompt(distillation.kind, group.plain_prompt, rollout.prompt_tokens)
            samples.append(Sample(prompt, rollout.tokens))
            problem_ids.append(rollout.problem_id)
            advantages.append(advantage)
            templated.append(not rollout.plain)
            own_prompt.append(prompt == rollout.prompt_tokens)
            engine.extend(rollout.logprobs)
    return TrainingSet(
        samples=tuple(samples),
        problem_ids=tuple(problem_ids),
        advantages=torch.tensor(advantages),
        templated=torch.tensor(templated, dtype=torch.bool),
        own_prompt=torch.tensor(own_prompt, dtype=torch.bool),
        engine_logprobs=torch.tensor(engine),
    )
