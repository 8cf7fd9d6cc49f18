"""Rounds of questions for Lightning: one batch is one round, and the position is the run's own."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from lightning import LightningDataModule

from p2o.config.schema import Config
from p2o.types import Problem, derive_seed


class Position(Protocol):
    """Where a run stands: the epoch, and the rounds of it that are done."""

    epoch: int
    round: int


class RoundLoader:
    """The rounds that an epoch still has to do, each a tuple of problems.

    It has a length: without one Lightning fetches a batch ahead, and a round must never be drawn before the
    previous one has updated the policy.
    """

    def __init__(self, rounds: Sequence[tuple[Problem, ...]]) -> None:
        self._rounds = rounds

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[tuple[Problem, ...]]:
        return iter(self._rounds)


def rounds_of_epoch(problems: Sequence[Problem], config: Config, epoch: int) -> list[tuple[Problem, ...]]:
    """The epoch's questions in its own order, cut into rounds; the last may be smaller."""
    order = list(problems)
    random.Random(derive_seed(config.seed, "order", epoch)).shuffle(order)
    size = config.policy.questions_per_round
    rounds = [tuple(order[i : i + size]) for i in range(0, len(order), size)]
    return rounds[: config.trainer.rounds_per_epoch]


def num_rounds(num_problems: int, config: Config) -> int:
    """Rounds of one epoch."""
    rounds = math.ceil(num_problems / config.policy.questions_per_round)
    limit = config.trainer.rounds_per_epoch
    return rounds if limit is None else min(rounds, limit)


class RoundDataModule(LightningDataModule):
    """Hands the trainer the rounds that are left of the state's epoch."""

    def __init__(self, problems: Sequence[Problem], config: Config, state: Position) -> None:
        super().__init__()
        self._problems = problems
        self._config = config
        self._state = state

    def train_dataloader(self) -> RoundLoader:
        rounds = rounds_of_epoch(self._problems, self._config, self._state.epoch)
        return RoundLoader(rounds[self._state.round :])

    def transfer_batch_to_device(
        self, batch: tuple[Problem, ...], device: torch.device, dataloader_idx: int
    ) -> tuple[Problem, ...]:
        """A round is text: there is nothing to transfer."""
        return batch
