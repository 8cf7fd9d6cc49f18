"""Which questions are hard: equation 5, and the variant that lets the plain rollouts decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2o.config.schema import HardSetConfig
from p2o.types import Group


@dataclass(frozen=True, slots=True)
class Record:
    """A problem's results in one epoch, with plain and templated rollouts apart."""

    plain_correct: int = 0
    plain_count: int = 0
    templated_correct: int = 0
    templated_count: int = 0

    @property
    def correct(self) -> int:
        return self.plain_correct + self.templated_correct

    @property
    def count(self) -> int:
        """K, the size of the group."""
        return self.plain_count + self.templated_count

    @classmethod
    def of(cls, group: Group) -> Record:
        plain = [rollout for rollout in group.rollouts if rollout.plain]
        templated = [rollout for rollout in group.rollouts if not rollout.plain]
        return cls(
            plain_correct=sum(rollout.correct for rollout in plain),
            plain_count=len(plain),
            templated_correct=sum(rollout.correct for rollout in templated),
            templated_count=len(templated),
        )


@dataclass(frozen=True, slots=True)
class HardSet:
    """The hard questions of the next epoch: ``ids`` in sorted order, whatever order the epoch visited them in.

    ``all_fail`` of them had no correct rollout at all (the intractable ones of the paper's Figure 4).
    """

    ids: tuple[str, ...] = ()
    all_fail: int = 0


def is_hard(record: Record, config: HardSetConfig) -> bool:
    """Whether a question joins the next epoch's hard set.

    ``official`` (equation 5): fewer than τ of its K rollouts are correct, whatever their prompt. ``plain_probe``:
    if there are plain rollouts, only they count: the question is hard while plain_correct · K < τ · plain_count.
    Both agree if all K are plain; with one plain rollout kept, the question leaves once that one is correct.
    """
    if config.rule == "plain_probe" and record.plain_count:
        return record.plain_correct * record.count < config.tau * record.plain_count
    return record.correct < config.tau


def mine(records: Mapping[str, Record], config: HardSetConfig) -> HardSet:
    """The hard set that an epoch leaves behind; ``records`` maps problem ids to their results."""
    hard = {problem_id: record for problem_id, record in records.items() if record.count and is_hard(record, config)}
    return HardSet(
        ids=tuple(sorted(hard)),
        all_fail=sum(record.correct == 0 for record in hard.values()),
    )
