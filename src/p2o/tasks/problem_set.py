"""Problems as a run gets them: usable, told apart, with a report of what was not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from p2o.types import Problem

SHOWN = 200
"""Characters of an unusable row that a report shows."""


class DataError(ValueError):
    """The data cannot be used; the message names the file or key and the mend."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that cannot become a problem: what kind of fault, where it is, what it looks like."""

    fault: str
    where: str
    shown: str


Row = Problem | Unusable


@dataclass
class DataReport:
    """How many rows of each kind are unusable, with the first of each kind as an example."""

    source: str
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Unusable] = field(default_factory=dict)

    def add(self, row: Unusable) -> None:
        self.faults[row.fault] += 1
        self.examples.setdefault(row.fault, row)

    def render(self) -> str:
        """The report for a person, a line a kind of fault."""
        dropped = sum(self.faults.values())
        lines = [f"{self.source}: {self.rows - dropped} of {self.rows} rows are usable"]
        for fault, count in self.faults.most_common():
            example = self.examples[fault]
            lines.append(f"  {count} left out, {fault}; first {example.where}: {example.shown[:SHOWN]}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ProblemSet:
    """Training and held-out problems. ``fingerprint`` changes with any of them, and with their order."""

    train: tuple[Problem, ...]
    val: tuple[Problem, ...]
    report: DataReport

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for problem in part:
                digest.update(json.dumps(asdict(problem), sort_keys=True, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()


def question_id(prefix: str, question: str) -> str:
    """Stable id of a question without one of its own."""
    return f"{prefix}-{hashlib.sha256(question.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def distinct(rows: Iterable[Row], report: DataReport) -> list[Problem]:
    """The usable rows in their order: no empty question or answer, no question and no id twice; the rest reported."""
    problems: list[Problem] = []
    ids: set[str] = set()
    questions: set[str] = set()
    for row in rows:
        report.rows += 1
        if isinstance(row, Problem):
            row = _judge(row, ids, questions)
        if isinstance(row, Unusable):
            report.add(row)
            continue
        ids.add(row.id)
        questions.add(_normal(row.question))
        problems.append(row)
    return problems


def _judge(problem: Problem, ids: set[str], questions: set[str]) -> Row:
    shown = problem.question.replace("\n", " ")
    if not problem.question.strip():
        return Unusable("empty question", problem.id, shown)
    if not problem.answer.strip() and not problem.metadata:
        return Unusable("empty answer", problem.id, shown)
    if _normal(problem.question) in questions:
        return Unusable("question seen before", problem.id, shown)
    if problem.id in ids:
        return Unusable("id seen before", problem.id, shown)
    return problem


def _normal(question: str) -> str:
    return " ".join(question.split())
