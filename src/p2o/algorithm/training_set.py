"""What an optimizer step trains on: which prompt a rollout is trained under, and with what advantage.

All per-token numbers are flat: sample after sample, token after token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.algorithm.advantages import GroupAdvantages, Signal
from p2o.algorithm.distillation import training_prompt
from p2o.config.schema import DistillationConfig
from p2o.policy.layout import Sample, deal
from p2o.ranks import Ranks
from p2o.types import derive_seed


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The samples of one optimizer step: S samples, M completion tokens in all."""

    samples: tuple[Sample, ...]
    problem_ids: tuple[str, ...]
    """[S]"""
    advantages: Tensor
    """[S]"""
    templated: Tensor
    """[S] True if the rollout was sampled under a template."""
    own_prompt: Tensor
    """[S] True if the training prompt is the one that the rollout was sampled under."""
    engine_logprobs: Tensor
    """[M] log-probs that the tokens were sampled with."""

    @property
    def tokens(self) -> int:
        return len(self.engine_logprobs)

    def __len__(self) -> int:
        return len(self.samples)

    def share(self, layout: str, ranks: Ranks) -> TrainingSet:
        """What this rank trains on; together the ranks' shares are the whole set."""
        if ranks.size == 1:
            return self
        own = deal(self.samples, layout, ranks.size)[ranks.rank]
        logprobs = self.engine_logprobs.split([len(sample.completion) for sample in self.samples])
        return TrainingSet(
            samples=tuple(self.samples[i] for i in own),
            problem_ids=tuple(self.problem_ids[i] for i in own),
            advantages=self.advantages[own],
            templated=self.templated[own],
            own_prompt=self.own_prompt[own],
            engine_logprobs=torch.cat([logprobs[i] for i in own]) if own else torch.empty(0),
        )


def training_sets(
    groups: Sequence[GroupAdvantages], steps: int, distillation: DistillationConfig, *, seed: int
) -> list[TrainingSet]:
    """Deal the live groups, in an order drawn from ``seed``, to ``steps`` optimizer steps.

    Some sets are empty if there are fewer live groups than steps.
    """
    live = [group for group in groups if group.signal is Signal.LIVE]
    random.Random(derive_seed("update order", seed)).shuffle(live)
    return [_training_set(live[i::steps], distillation) for i in range(steps)]


def _training_set(live: Sequence[GroupAdvantages], distillation: DistillationConfig) -> TrainingSet:
    chosen = [
        (scored.group, rollout, advantage)
        for scored in live
        for rollout, advantage in zip(scored.group.rollouts, scored.values, strict=True)
        if not (distillation.positive_only and not rollout.plain and advantage < 0)
    ]
    prompts = [training_prompt(distillation.kind, group.plain_prompt, r.prompt_tokens) for group, r, _ in chosen]
    rollouts = [rollout for _, rollout, _ in chosen]
    own = [prompt == rollout.prompt_tokens for prompt, rollout in zip(prompts, rollouts, strict=True)]
    return TrainingSet(
        samples=tuple(Sample(prompt, r.tokens) for prompt, r in zip(prompts, rollouts, strict=True)),
        problem_ids=tuple(rollout.problem_id for rollout in rollouts),
        advantages=torch.tensor([advantage for _, _, advantage in chosen]),
        templated=torch.tensor([not rollout.plain for rollout in rollouts], dtype=torch.bool),
        own_prompt=torch.tensor(own, dtype=torch.bool),
        engine_logprobs=torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs]),
    )
