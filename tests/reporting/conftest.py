"""Small real values: groups and rollouts as the sampler makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2o.config import Config
from p2o.types import PLAIN, Grade, Group, Outcome, Problem, Rollout

OUTCOMES = {
    "c": Grade(Outcome.CORRECT, 1.0, "4"),
    "w": Grade(Outcome.WRONG, 0.0, "5"),
    "u": Grade(Outcome.UNPARSEABLE, 0.0),
    "t": Grade(Outcome.TIMEOUT, 0.0),
}


def build_group(problem_id: str, outcomes: str, templates: tuple[str, ...] | None = None, length: int = 3) -> Group:
    """A group with one rollout a letter: correct, wrong, unparseable or timeout; rollout 0 is cut short at "t"."""
    problem = Problem(id=problem_id, question=f"What is {problem_id}?", answer="4")
    rollouts = tuple(
        Rollout(
            problem_id=problem_id,
            template_id=templates[i] if templates else PLAIN,
            index=i,
            prompt_tokens=(1, 2),
            tokens=tuple(range(length + i)),
            logprobs=(-0.5,) * (length + i),
            text=f"answer {i} to {problem_id} <b>&</b> ünïcode\nAnswer: 4",
            finish_reason="length" if letter == "t" else "stop",
            grade=OUTCOMES[letter],
            policy_version=7,
        )
        for i, letter in enumerate(outcomes)
    )
    return Group(problem=problem, plain_prompt=(1,), rollouts=rollouts)


@pytest.fixture
def make_group() -> Callable[..., Group]:
    return build_group


@pytest.fixture
def config(configure: Callable[..., Config]) -> Config:
    return configure("+experiment=teacher_ref", "model=tiny", "seed=3", "logger.samples=2")
