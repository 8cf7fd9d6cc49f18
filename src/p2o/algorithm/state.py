"""What a resume needs beside weights and optimizer: one JSON value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from p2o.algorithm.hard_set import Record
from p2o.rollout.ledger import Ledger
from p2o.types import Assignment


class Stage(StrEnum):
    """Where the alternating maximisation stands."""

    START = "start"
    """Nothing but the initial weights; the first validation is due."""
    POLICY = "policy"
    """Inside an epoch's rounds."""
    PROMPT = "prompt"
    """All rounds of the epoch are done; validation, mining and evolution are due."""
    FINISH = "finish"
    """All epochs are done; the export and the closing report are due."""
    DONE = "done"


@dataclass
class EpochSummary:
    """One row of ``summary.json``: what an epoch did. Rates are in [0, 1], accuracies on plain held-out questions.

    The Pass@k are those of this epoch's training rollouts (Figure 4), by the unbiased estimator, null where there are
    too few rollouts for it. ``plain`` is over all questions with plain rollouts, and at K where all have K.
    ``hard_plain`` and ``evolved`` compare plain and templated rollouts of the same questions; see
    :func:`p2o.algorithm.epoch_summary.compared`.
    """

    epoch: int
    step: int
    train_reward: float
    val_accuracy: float | None = None
    hard: int = 0
    hard_all_fail: int = 0
    templates: int = 0
    templates_best_dev: float | None = None
    dev_seed_score: float | None = None
    covered: int = 0
    leaked: int = 0
    plain_pass_at_1: float | None = None
    plain_pass_at_k: float | None = None
    hard_plain_pass_at_1: float | None = None
    hard_plain_pass_at_k: float | None = None
    evolved_pass_at_1: float | None = None
    evolved_pass_at_k: float | None = None
    evolved_k: int | None = None
    """The k of ``hard_plain_pass_at_k`` and ``evolved_pass_at_k``."""
    note: str = ""
    """Why there was no evolution, where there was none."""


@dataclass
class ValidationHistory:
    """Accuracy on plain held-out questions: ``history`` is a list of (step, accuracy)."""

    history: list[tuple[int, float]] = field(default_factory=list)

    @property
    def initial(self) -> float | None:
        return self.history[0][1] if self.history else None

    @property
    def final(self) -> float | None:
        return self.history[-1][1] if self.history else None

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, accuracy) of the best validation, the earliest on ties."""
        return max(self.history, key=lambda item: (item[1], -item[0])) if self.history else None


@dataclass
class RunState:
    """The position of a run. ``round`` counts the rounds done in this epoch, ``step`` those of the whole run."""

    stage: Stage = Stage.START
    epoch: int = 0
    round: int = 0
    step: int = 0
    policy_version: int = 0
    records: dict[str, Record] = field(default_factory=dict)
    """Successes of this epoch by problem id; the hard set is mined from them."""
    assignment: Assignment = field(default_factory=Assignment)
    front: list[str] = field(default_factory=list)
    """Texts of the templates on the last Pareto front, for ``gepa.warm_start``."""
    epochs: list[EpochSummary] = field(default_factory=list)
    validation: ValidationHistory = field(default_factory=ValidationHistory)
    ledger: Ledger = field(default_factory=Ledger)
    stop_reason: str | None = None
    skipped_in_a_row: int = 0
    """Optimizer steps skipped since the last one that was taken; too many end the run."""
    micro_batch_tokens: int | None = None
    """Token budget of a micro-batch; null = ``policy.micro_batch_tokens``, less where memory ran out."""
    data: str | None = None
    """Fingerprint of the questions that the run began with."""
    platform: dict[str, str] = field(default_factory=dict)
    """What the last launch computed with (threads, devices, versions): on another platform, bits may differ."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of the growing files that belong to this position, by path in the run's folder."""

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage.value,
            "epoch": self.epoch,
            "round": self.round,
            "step": self.step,
            "policy_version": self.policy_version,
            "records": {key: dataclasses.asdict(record) for key, record in self.records.items()},
            "assignment": self.assignment.to_json(),
            "front": self.front,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
            "validation": [list(item) for item in self.validation.history],
            "ledger": self.ledger.to_json(),
            "stop_reason": self.stop_reason,
            "skipped_in_a_row": self.skipped_in_a_row,
            "micro_batch_tokens": self.micro_batch_tokens,
            "data": self.data,
            "platform": self.platform,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunState:
        return cls(
            stage=Stage(value["stage"]),
            epoch=value["epoch"],
            round=value["round"],
            step=value["step"],
            policy_version=value["policy_version"],
            records={key: Record(**record) for key, record in value["records"].items()},
            assignment=Assignment.from_json(value["assignment"]),
            front=list(value["front"]),
            epochs=[EpochSummary(**epoch) for epoch in value["epochs"]],
            validation=ValidationHistory([(step, accuracy) for step, accuracy in value["validation"]]),
            ledger=Ledger.from_json(value["ledger"]),
            stop_reason=value["stop_reason"],
            skipped_in_a_row=value["skipped_in_a_row"],
            micro_batch_tokens=value["micro_batch_tokens"],
            data=value["data"],
            platform=dict(value["platform"]),
            files=dict(value["files"]),
        )
