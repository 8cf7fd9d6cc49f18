"""From written-out answers to figures: ``results.json`` of one evaluation, and its comparison with another one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from p2o import json_lines
from p2o.evaluation.answers import TOO_LONG
from p2o.evaluation.statistics import Resampling, Values, compare, mean_interval
from p2o.reporting.epoch_summary import pass_at_k
from p2o.tasks import DataError
from p2o.types import Outcome

RESULTS = "results.json"
OUTCOMES = (*(outcome.value for outcome in Outcome), TOO_LONG)
Row = Mapping[str, Any]
Correct = dict[tuple[str, str], tuple[bool, ...]]
"""Whether each answer is correct, by the question's id and text: an id alone may have got another question since."""


@dataclass(frozen=True)
class SetResult:
    """What one set says."""

    correct: Correct
    figures: dict[str, Any]

    @property
    def rates(self) -> Values:
        """The share of correct answers, question by question [Q]."""
        return np.array([fmean(answers) for answers in self.correct.values()])


def judge_set(rows: Iterable[Row], pass_at: Iterable[int], how: Resampling) -> SetResult:
    """Accuracy (the mean over questions of the share of correct answers), Pass@k and what became of the answers."""
    listed = list(rows)
    correct = correct_by_question(listed)
    n = min(map(len, correct.values()))
    rates = np.array([fmean(answers) for answers in correct.values()])
    figures = {
        "questions": len(correct),
        "samples": n,
        "accuracy": float(rates.mean()),
        "interval": _plain(mean_interval([rates], how)),
        "pass_at": {str(k): _pass_at(correct, k, how) for k in sorted(set(pass_at)) if k <= n},
        "outcomes": dict.fromkeys(OUTCOMES, 0) | Counter(row["outcome"] for row in listed),
        "cut_off": sum(row["finish_reason"] == "length" for row in listed),
        "generated_tokens": sum(row["tokens"] for row in listed),
        "mean_tokens": fmean(row["tokens"] for row in listed),
    }
    return SetResult(correct, figures)


def correct_by_question(rows: Iterable[Row]) -> Correct:
    """In the order of the file."""
    found: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        found.setdefault((row["id"], row["question"]), []).append(row["outcome"] == Outcome.CORRECT.value)
    return {question: tuple(answers) for question, answers in found.items()}


def _pass_at(correct: Correct, k: int, how: Resampling) -> dict[str, Any]:
    values = np.array([pass_at_k(len(answers), sum(answers), k) for answers in correct.values()])
    return {"mean": float(values.mean()), "interval": _plain(mean_interval([values], how))}


def average(results: Mapping[str, SetResult], how: Resampling) -> dict[str, Any]:
    """The plain mean over the sets, as in the paper's tables, whatever their sizes."""
    rates = [result.rates for result in results.values()]
    return {
        "accuracy": fmean(float(values.mean()) for values in rates),
        "interval": _plain(mean_interval(rates, how)),
    }


class Other:
    """A finished evaluation that this one is compared with."""

    def __init__(self, folder: str) -> None:
        """Raises :class:`~p2o.tasks.DataError` if ``folder`` holds no finished evaluation."""
        self.folder = Path(folder).expanduser()
        path = self.folder / RESULTS
        if not path.is_file():
            raise DataError(f"compare={folder} has no {RESULTS}: give the run_dir of a finished evaluation")
        self.results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def check(self, names: Sequence[str]) -> None:
        """Raise :class:`~p2o.tasks.DataError` if it has none of these sets."""
        if not set(names) & set(self.results["sets"]):
            there = ", ".join(self.results["sets"])
            raise DataError(f"compare={self.folder} has none of {', '.join(names)}; its sets: {there}")

    def compared(self, results: Mapping[str, SetResult], how: Resampling) -> dict[str, Any]:
        """This evaluation less the other, set by set, on the questions that both have; and which sets only one has."""
        sets: dict[str, Any] = {}
        differences = []
        for name, ours in results.items():
            path = self.folder / "answers" / f"{name}.jsonl"
            if not path.is_file():
                continue
            theirs = correct_by_question(json_lines.read(path))
            shared = [question for question in ours.correct if question in theirs]
            if not shared:
                continue
            a, b = (np.array([fmean(side[question]) for question in shared]) for side in (ours.correct, theirs))
            single = all(len(side[question]) == 1 for side in (ours.correct, theirs) for question in shared)
            sets[name] = {
                "accuracy": float(a.mean()),
                "other_accuracy": float(b.mean()),
                **asdict(compare(a, b, how, single=single)),
                "only_here": len(ours.correct) - len(shared),
                "only_there": len(theirs) - len(shared),
            }
            differences.append(a - b)
        if not sets:
            raise DataError(f"compare={self.folder} answers none of these questions, although its sets are called so")
        mean = fmean(float(values.mean()) for values in differences)
        return {
            "with": str(self.folder),
            "model": self.results["model"],
            "template_id": self.results["template_id"],
            "sets": sets,
            "average": {"mean": mean, "interval": _plain(mean_interval(differences, how))},
            "not_compared": sorted(set(results) - set(sets)),
        }


def _plain(interval: Any) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)
