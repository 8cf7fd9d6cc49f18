"""The written-out answers of one set, ``answers/<set>.jsonl``: the record that results are counted from.

Requests stand in a fixed order and are answered in chunks of fixed bounds; each chunk is appended when it is done. A
continued evaluation keeps whole chunks only, so that the engine meets the same batches as without the interruption:
in bfloat16 an answer can depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from p2o import json_lines
from p2o.evaluation.benchmarks import Benchmark
from p2o.evaluation.protocol import Protocol
from p2o.run_folder import RunFolderError
from p2o.types import Request, Rollout, derive_seed, template_id

TOO_LONG = "too_long"
"""Outcome of a question whose prompt does not fit: counted as wrong, so that every model has the same questions."""

Row = dict[str, Any]


def requests_of(benchmark: Benchmark, protocol: Protocol, template: str, seed: int) -> list[Request]:
    """Every answer to make: question by question, sample by sample."""
    return [
        Request(problem, i, derive_seed(seed, "evaluate", benchmark.name, problem.id, i), template)
        for problem in benchmark.problems
        for i in range(protocol.samples)
    ]


class AnswerLog:
    """``path`` against the ``requests`` that it is to answer, in their order."""

    def __init__(self, path: Path, requests: Sequence[Request], chunk: int) -> None:
        self.path = path
        self.requests = requests
        self.chunk = chunk
        self.done = self._resume()

    @property
    def complete(self) -> bool:
        return self.done == len(self.requests)

    def rows(self) -> Iterator[Row]:
        return json_lines.read(self.path)

    def open_chunks(self) -> Iterator[Sequence[Request]]:
        """The chunks that are still to answer; each must be written before the next is asked for."""
        while not self.complete:
            yield self.requests[self.done : self.done + self.chunk]

    def write(self, rows: Iterable[Row]) -> None:
        """Append the answers to one chunk."""
        written = list(rows)
        json_lines.append(self.path, written)
        self.done += len(written)

    def _resume(self) -> int:
        found = list(json_lines.read(self.path))
        if len(found) > len(self.requests):
            raise RunFolderError(f"{self.path} has more answers than there are questions: {_FIX}")
        for number, (row, request) in enumerate(zip(found, self.requests, strict=False), start=1):
            if any(row.get(key) != value for key, value in _asked(request).items()):
                raise RunFolderError(f"{self.path}, line {number} answers another question or template: {_FIX}")
        if len(found) < len(self.requests):
            found = found[: len(found) // self.chunk * self.chunk]
            if self.path.exists():
                json_lines.rewrite(self.path, found)
        return len(found)


_FIX = "the data or the template file has changed since. Give another run_dir"


def _asked(request: Request) -> Row:
    problem = request.problem
    return {
        "id": problem.id,
        "sample": request.index,
        "seed": request.seed,
        "template_id": template_id(request.template),
        "question": problem.question,
        "gold": problem.answer,
    }


def answered(request: Request, prompt_tokens: int, rollout: Rollout | None) -> Row:
    """One line of the file; without a rollout it is that of a question that was too long to be asked."""
    row = {
        **_asked(request),
        **{"text": "", "extracted": None, "outcome": TOO_LONG, "finish_reason": None},
        **{"prompt_tokens": prompt_tokens, "tokens": 0},
    }
    if rollout is not None:
        row |= {"text": rollout.text, "extracted": rollout.grade.extracted, "outcome": rollout.grade.outcome.value}
        row |= {"finish_reason": rollout.finish_reason, "tokens": len(rollout.tokens)}
    return row
