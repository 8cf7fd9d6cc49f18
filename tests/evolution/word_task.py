"""A task for evolutions that is small enough to be a plain function, and reflectors that play along."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2o.config.schema import GepaConfig
from p2o.evolution.gepa_phase import Evolution, Setting, evolve
from p2o.evolution.reflectors import Reflection, ReflectionJob
from p2o.rollout.ledger import Ledger
from p2o.types import Grade, Outcome, Phase, Problem, Request, Rollout, template_id

WORDS = {"sum": "add", "sort": "order", "count": "tally", "reverse": "mirror"}
"""The word that a template must contain for a family of questions to be solved."""

HARD = [
    Problem(f"../{family}/{i}", f"{family} of item {i}", f"answer-{family}-{i}7") for family in WORDS for i in range(8)
]


def solves(template: str, problem: Problem) -> bool:
    return WORDS[problem.question.split()[0]] in template.split()


@dataclass
class Task:
    """Grades by the word rule; with ``dies_at=n`` its n-th call ends in an error, as a kill would."""

    dies_at: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    calls: list[list[Request]] = field(default_factory=list)
    version: int = 3

    def __call__(self, requests: Sequence[Request]) -> list[Rollout]:
        self.calls.append(list(requests))
        if len(self.calls) == self.dies_at:
            raise RuntimeError("killed in evaluate")
        self.ledger.add(Phase.EVOLUTION, generated_tokens=3 * len(requests), rollouts=len(requests))
        rollouts = [self._rollout(request) for request in requests]
        random.Random(len(requests)).shuffle(rollouts)  # nothing may be joined by position
        return rollouts

    def _rollout(self, request: Request) -> Rollout:
        right = solves(request.template, request.problem)
        grade = Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right), "x")
        return Rollout(
            problem_id=request.problem.id,
            template_id=template_id(request.template),
            index=request.index,
            prompt_tokens=(1, 2),
            tokens=(3, 4, 5),
            logprobs=(0.0, 0.0, 0.0),
            text=f"worked on {request.problem.question} \udcff",
            finish_reason="stop",
            grade=grade,
            policy_version=self.version,
        )

    def pairs(self) -> list[tuple[str, str, int]]:
        return [(r.template, r.problem.id, r.index) for call in self.calls for r in call]


@dataclass
class WordReflector:
    """Adds the word for a failed example's family, or noise; with its own ``rng`` it never answers twice alike."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    dies_at: int | None = None
    deterministic: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    failures: Counter[str] = field(default_factory=Counter)
    calls: list[list[ReflectionJob]] = field(default_factory=list)

    def check(self) -> None: ...

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        self.calls.append(list(jobs))
        if len(self.calls) == self.dies_at:
            raise RuntimeError("killed in reflect")
        self.ledger.add(Phase.REFLECTION, reflection_calls=len(jobs))
        return [self._reflect(job) for job in jobs]

    def _reflect(self, job: ReflectionJob) -> Reflection:
        rng = random.Random(job.seed) if self.deterministic else self.rng
        failed = [example for example in job.examples if not example.solved]
        kind = rng.random()
        if kind < 0.15:
            return Reflection(None, error="unfenced")
        if kind < 0.3:
            return Reflection(f"the answer is {failed[0].answer}")
        if kind < 0.5:
            return Reflection(f"think {job.seed % 10}")
        word = WORDS[rng.choice(failed).question.split()[0]]
        return Reflection(f"please {word} it {rng.randrange(1000)}", raw="\ud800", prompt_tokens=5)


class Silent(WordReflector):
    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        self.calls.append(list(jobs))
        return [Reflection(None, error="timeout") for _ in jobs]


def config(**fields: Any) -> GepaConfig:
    defaults: dict[str, Any] = {"variant": "teacher_ref", "dev_size": 12, "parents": 3, "metric_calls": 400}
    return GepaConfig(**{**defaults, **fields})


def run(
    run_dir: Path, task: Task | None = None, reflector: WordReflector | None = None, /, **kwargs: Any
) -> tuple[Evolution, Task, WordReflector]:
    task, reflector = task or Task(), reflector or WordReflector()
    ledger = Ledger()
    task.ledger = reflector.ledger = ledger
    hard, used = kwargs.pop("hard", HARD), kwargs.pop("config", None) or config(**kwargs.pop("fields", {}))
    setting = Setting(
        epoch=kwargs.pop("epoch", 1),
        seed=7,
        run_dir=run_dir,
        count_tokens=lambda text: len(text.split()),
        ledger=ledger,
        **kwargs,
    )
    evolution = evolve(hard, task, reflector, used, setting)
    return evolution, task, reflector
