"""What a run has cost: counts by phase, one ledger for the policy's rollouts and for everything that GEPA spends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from p2o.types import Phase


@dataclass(slots=True)
class Counts:
    """Cost of one phase. Tokens are counted once a sequence, end tokens included, padding never.

    No pass is in two of the counts: an engine reads ``prompt_tokens`` and makes ``generated_tokens``; the trainer reads
    ``scored_tokens`` without a gradient, for the log-probs that later updates of a round compare with, and
    ``trained_tokens`` with one. Of the trainer's passes only completions are counted.
    """

    generated_tokens: int = 0
    prompt_tokens: int = 0
    rollouts: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    metric_calls: int = 0
    reflection_calls: int = 0
    seconds: float = 0.0

    def add(self, **counts: float) -> None:
        for name, value in counts.items():
            setattr(self, name, getattr(self, name) + value)


class Ledger:
    """Adds up :class:`Counts` by :class:`~p2o.types.Phase`; JSON in and out, for checkpoints and summaries."""

    def __init__(self) -> None:
        self.by_phase = {phase: Counts() for phase in Phase}

    def add(self, phase: Phase, **counts: float) -> None:
        """``ledger.add(Phase.POLICY, rollouts=48, seconds=1.5)``; a name that Counts lacks is an AttributeError."""
        self.by_phase[phase].add(**counts)

    def totals(self) -> Counts:
        """The sum over the phases."""
        total = Counts()
        for counts in self.by_phase.values():
            total.add(**asdict(counts))
        return total

    def to_json(self) -> dict[str, dict[str, float]]:
        return {phase.value: asdict(counts) for phase, counts in self.by_phase.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, float]]) -> Ledger:
        """The inverse of :meth:`to_json`; an unknown phase or count is refused by name."""
        ledger = cls()
        known = {f.name for f in fields(Counts)}
        for phase, counts in data.items():
            if unknown := set(counts) - known:
                raise ValueError(f"ledger.{phase}: unknown counts {sorted(unknown)}")
            ledger.add(Phase(phase), **counts)
        return ledger
