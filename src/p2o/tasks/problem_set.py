"""The problems of a run: usable and distinct, with a report of what was not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from p2o.errors import InputError
from p2o.types import Problem

SHOWN = 200
"""Characters of an unusable row that a report keeps."""


class DataError(InputError):
    """The data cannot be used; the message names the file or key and the fix."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that cannot become a problem: what kind of fault, where it is, what it looks like."""

    fault: str
    where: str
    shown: str


Row = Problem | Unusable


@dataclass
class DataReport:
    """How many rows are unusable by kind of fault, with the first of each kind as an example."""

    source: str
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Unusable] = field(default_factory=dict)

    def add(self, row: Unusable) -> None:
        """Count an unusable row."""
        self.faults[row.fault] += 1
        if row.fault not in self.examples:
            shown = " ".join(row.shown[:SHOWN].split()).encode("utf-8", "replace").decode()
            self.examples[row.fault] = Unusable(row.fault, row.where[:SHOWN], shown)

    def render(self) -> str:
        """The report for people, one line per kind of fault."""
        lines = [f"{self.source}: {self.rows - self.faults.total()} of {self.rows} rows are usable"]
        for fault, count in self.faults.most_common():
            example = self.examples[fault]
            lines.append(f"  {count} left out, {fault}; the first at {example.where}: {example.shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ProblemSet:
    """Training and held-out problems, no question in both."""

    train: tuple[Problem, ...]
    val: tuple[Problem, ...]
    report: DataReport

    @property
    def fingerprint(self) -> str:
        """A digest of every field of every problem, in order: what a resumed run compares."""
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for problem in part:
                digest.update(json.dumps(asdict(problem), sort_keys=True).encode())
            digest.update(b"\n")
        return digest.hexdigest()


class Sieve:
    """Lets every usable question through once, across all parts of the data; reports the rest."""

    def __init__(self, report: DataReport) -> None:
        self._report = report
        self._ids: set[str] = set()
        self._questions: set[str] = set()

    def __call__(self, rows: Iterable[Row]) -> Iterator[Problem]:
        for row in rows:
            self._report.rows += 1
            fault = row if isinstance(row, Unusable) else self._fault(row)
            if fault is not None:
                self._report.add(fault)
            elif isinstance(row, Problem):
                self._ids.add(row.id)
                self._questions.add(_normal(row.question))
                yield row

    def _fault(self, problem: Problem) -> Unusable | None:
        if not _is_unicode(problem.id + problem.question + problem.answer):
            return Unusable("text that is not Unicode", problem.id, problem.question)
        if not problem.question.strip():
            return Unusable("empty question", problem.id, problem.question)
        if _normal(problem.question) in self._questions:
            return Unusable("question seen before", problem.id, problem.question)
        if problem.id in self._ids:
            return Unusable("id seen before", problem.id, problem.question)
        return None


def question_id(prefix: str, question: str) -> str:
    """Stable id of a question that has none."""
    return f"{prefix}-{hashlib.sha256(question.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _normal(question: str) -> str:
    return " ".join(question.split())


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no tokenizer or file accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
