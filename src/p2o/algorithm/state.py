"""What a resume needs besides weights and optimizer: one JSON value."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from p2o.algorithm.hard_set import Record
from p2o.rollout.ledger import Ledger
from p2o.types import Assignment


class Stage(StrEnum):
    """Where the alternating maximisation stands.

    ``START``: only the initial weights; the first validation is due. ``POLICY``: inside an epoch's rounds.
    ``PROMPT``: all rounds of the epoch are done; validation, mining and evolution are due. ``FINISH``: all epochs are
    done; the export and the closing report are due.
    """

    START = "start"
    POLICY = "policy"
    PROMPT = "prompt"
    FINISH = "finish"
    DONE = "done"


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
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """The rows of ``summary.json`` so far, see :mod:`p2o.reporting.epoch_summary`."""
    validation: ValidationHistory = field(default_factory=ValidationHistory)
    ledger: Ledger = field(default_factory=Ledger)
    stop_reason: str | None = None
    skipped_in_a_row: int = 0
    """Optimizer steps skipped since the last one that was taken; too many end the run."""
    micro_batch_tokens: int | None = None
    """Token budget of a micro-batch; null = ``policy.micro_batch_tokens``, less if memory ran out."""
    data: str | None = None
    """Fingerprint of the questions that the run began with."""
    platform: dict[str, str] = field(default_factory=dict)
    """What the last launch computed with (threads, devices, versions): on another platform, bits may differ."""
    files: dict[str, int] = field(default_factory=dict)
    """Size in bytes of each growing file at this position, by path in the run's folder."""

    def to_json(self) -> dict[str, Any]:
        value = {
            **vars(self),
            "stage": self.stage.value,
            "records": {key: dataclasses.asdict(record) for key, record in self.records.items()},
            "assignment": self.assignment.to_json(),
            "validation": self.validation.history,
            "ledger": self.ledger.to_json(),
        }
        return copy.deepcopy(value)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunState:
        """The inverse of :meth:`to_json`."""
        parts = {
            "stage": Stage(value["stage"]),
            "records": {key: Record(**record) for key, record in value["records"].items()},
            "assignment": Assignment.from_json(value["assignment"]),
            "validation": ValidationHistory([(step, accuracy) for step, accuracy in value["validation"]]),
            "ledger": Ledger.from_json(value["ledger"]),
        }
        return cls(**{**value, **parts})
