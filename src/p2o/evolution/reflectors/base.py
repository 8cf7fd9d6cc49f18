"""What a reflector is asked and what it answers (equation 7: z' ~ reflector(· | meta prompt, z, feedback))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2o.errors import InputError
from p2o.types import Outcome


class ReflectorError(InputError):
    """A reflector cannot work as configured. One line that names the key and the fix."""


class UnreachableError(ReflectorError):
    """It could work, but its endpoint is not there now, or refuses it."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a template did on one question. ``answer`` is the gold answer, ``reward`` the mean over the samples."""

    question: str
    response: str
    answer: str
    outcome: Outcome
    extracted: str | None
    reward: float
    finish_reason: str

    @property
    def solved(self) -> bool:
        return self.reward >= 1.0


@dataclass(frozen=True, slots=True)
class ReflectionJob:
    """Improve ``template`` ("" = no instruction yet) by a minibatch's feedback."""

    template: str
    examples: tuple[Feedback, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Reflection:
    """A new template, or None and the kind of failure. ``raw`` is the reply that it was taken from."""

    text: str | None
    raw: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Reflector(Protocol):
    """Writes templates. Books what it spends in the run's ledger, unless the sampler does that for it."""

    failures: Counter[str]
    """How often each kind of failure occurred in this process, retries included."""

    def check(self) -> None:
        """Raise :class:`ReflectorError` if something needed is missing. Cheap: it comes before a model is loaded.

        A resumed run continues despite an :class:`UnreachableError`, as it does when a teacher disappears halfway.
        """
        ...

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        """One reflection per job, in order. A job that fails says so in its reflection and affects no other."""
        ...
