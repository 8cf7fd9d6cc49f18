"""The values that travel between the rooms: problem, request, rollout, group, template, assignment.

Everything is a frozen dataclass that carries ids, so nothing is ever joined by position. Only the standard
library is imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

PLAIN = "plain"
"""Id of the empty template, that is, of the question as it stands."""


class Outcome(StrEnum):
    """What the grader found; the causes of failure are counted apart."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"


class Phase(StrEnum):
    """Who asked for a rollout; the ledger keeps them apart."""

    POLICY = "policy"
    EVOLUTION = "evolution"
    REFLECTION = "reflection"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a verifiable answer. ``metadata`` is JSON and belongs to the reward (e.g. a task's entry)."""

    id: str
    question: str
    answer: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Template:
    """An evolved prompt z. ``dev_score`` is its mean score on the dev questions, ``covers`` the ids it solved."""

    text: str
    parents: tuple[str, ...] = ()
    epoch: int = 0
    dev_score: float = 0.0
    covers: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return template_id(self.text)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "parents": list(self.parents),
            "epoch": self.epoch,
            "dev_score": self.dev_score,
            "covers": sorted(self.covers),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Template:
        """The inverse of :meth:`to_json`; the id follows from the text."""
        return cls(
            text=value["text"],
            parents=tuple(value["parents"]),
            epoch=value["epoch"],
            dev_score=value["dev_score"],
            covers=frozenset(value["covers"]),
        )


def template_id(text: str) -> str:
    """Stable id of a template: a digest of its text, ``"plain"`` for the empty one."""
    return hashlib.sha256(text.encode()).hexdigest()[:10] if text else PLAIN


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens. ``temperature=0`` is greedy. ``top_p`` below 1 cuts the tail of the distribution."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to make: a problem under a template (text, "" = plain), the ``index``-th of its kind."""

    problem: Problem
    index: int
    seed: int
    template: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt as the engine sees it: token ids and the seed of this one sequence."""

    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine made from a prompt.

    ``tokens`` includes the end token if ``finish_reason`` is "stop". ``logprobs`` are those of the sampling
    distribution (after temperature; temperature 1 for greedy decoding), one per token.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str  # "stop" | "length"


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict: outcome, reward in [0, 1] and the answer that was extracted (None if none was found)."""

    outcome: Outcome
    reward: float
    extracted: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A graded answer. ``prompt_tokens`` is the (possibly templated) prompt that the tokens were sampled under."""

    problem_id: str
    template_id: str
    index: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    grade: Grade
    policy_version: int

    @property
    def reward(self) -> float:
        return self.grade.reward

    @property
    def correct(self) -> bool:
        return self.grade.outcome is Outcome.CORRECT

    @property
    def plain(self) -> bool:
        return self.template_id == PLAIN


@dataclass(frozen=True, slots=True)
class Group:
    """The K rollouts of one problem in one round, with the tokens of its plain prompt x."""

    problem: Problem
    plain_prompt: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(r.reward for r in self.rollouts)

    @property
    def templated(self) -> bool:
        return any(not r.plain for r in self.rollouts)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which templates a hard question meets in the next epoch: problem id → one template id per rollout."""

    templates: Mapping[str, Template] = field(default_factory=dict)
    by_problem: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def texts(self, problem_id: str, k: int) -> tuple[str, ...]:
        """The K template texts of a question; all empty (plain) if it has no assignment."""
        ids = self.by_problem.get(problem_id)
        return tuple(self.templates[i].text if i != PLAIN else "" for i in ids) if ids else ("",) * k

    def to_json(self) -> dict[str, Any]:
        return {
            "templates": [template.to_json() for template in self.templates.values()],
            "by_problem": {problem_id: list(ids) for problem_id, ids in self.by_problem.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Assignment:
        """The inverse of :meth:`to_json`."""
        templates = [Template.from_json(template) for template in value["templates"]]
        return cls(
            {template.id: template for template in templates},
            {problem_id: tuple(ids) for problem_id, ids in value["by_problem"].items()},
        )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from (run seed, phase, epoch, …): the same parts give the same seed on every machine."""
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
