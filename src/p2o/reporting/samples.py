"""Rollouts worth reading: the same question answered plainly and under an evolved template (Figure 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2o.reporting.rollout_log import epoch_files, read_epoch
from p2o.types import PLAIN

Row = Mapping[str, Any]
"""A row of :data:`p2o.reporting.rollout_log.SCHEMA`."""


@dataclass(frozen=True)
class Pair:
    """A question's plain answer beside its templated one; either may be missing, not both."""

    problem_id: str
    question: str
    answer: str
    plain: Row | None = None
    templated: Row | None = None

    @property
    def helped(self) -> bool:
        """Whether the templated answer earned more than the plain one."""
        return bool(self.plain and self.templated and self.templated["reward"] > self.plain["reward"])

    @property
    def telling(self) -> tuple[bool, bool, bool]:
        """What makes a pair worth showing: both are there, the template helped, the plain answer is right."""
        both = self.plain is not None and self.templated is not None
        return both, self.helped, bool(self.plain and self.plain["reward"])


def pairs(folder: Path, epoch: int, limit: int) -> list[Pair]:
    """The ``limit`` most telling pairs of an epoch, from the ``rollouts/`` folder of a run.

    Where all of a question's rollouts were templated, its plain answer is the one of the epoch before, in which it
    became hard.
    """
    files = epoch_files(folder)
    if epoch not in files:
        return []
    plain, templated = _first_and_best(read_epoch(files[epoch]))
    orphans = templated.keys() - plain.keys()
    if orphans and epoch - 1 in files:
        earlier, _ = _first_and_best(row for row in read_epoch(files[epoch - 1]) if row["problem_id"] in orphans)
        plain |= earlier
    candidates = [
        Pair(key, row["question"], row["answer"], plain.get(key), templated.get(key))
        for key, row in sorted((plain | templated).items())
    ]
    return sorted(candidates, key=lambda pair: pair.telling, reverse=True)[:limit]


def _first_and_best(rows: Iterable[Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    """By problem: its first plain rollout, and the templated one with the highest reward (the earliest of them)."""
    plain: dict[str, Row] = {}
    templated: dict[str, Row] = {}
    for row in rows:
        key = row["problem_id"]
        if row["template_id"] == PLAIN:
            plain.setdefault(key, row)
        elif key not in templated or row["reward"] > templated[key]["reward"]:
            templated[key] = row
    return plain, templated
