"""The one interface between p2o and whatever generates text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from p2o.errors import RunError
from p2o.types import Generation, Prompt, SamplingParams

Lengths = Mapping[str, int]
"""Tokens of the longest sequences that a run may ask for, prompt included, by the keys that set them."""

OnFinish = Callable[[int, Generation], None]
"""Called once a prompt with its position in the call, as soon as its generation ended."""


class StalePolicyError(RuntimeError):
    """The engine holds another policy version than the one it was asked to sample from."""


class EngineError(RunError):
    """The engine cannot go on: it is not installed, does not start, keeps dying, or does not hold the policy."""


def refuse_stale(held: int, asked: int) -> None:
    """Raise :class:`StalePolicyError` if an engine holds another version than the one that it is asked for."""
    if held != asked:
        raise StalePolicyError(f"the engine holds policy version {held}, not {asked}: call sync first")


def refuse_lengths(longest: Lengths, context: int, fix: str) -> None:
    """Raise :class:`EngineError` if a run may ask for more than the ``context`` tokens that an engine can hold;
    ``fix`` says how to give it more."""
    for keys, tokens in longest.items():
        if tokens > context:
            raise EngineError(
                f"{keys} may come to {tokens} tokens, but the engine attends to {context}: lower them, or {fix}"
            )


def refuse_long(prompts: Sequence[Prompt], sampling: SamplingParams, context: int, fix: str) -> None:
    """Raise ``ValueError`` if a call asks for more than the ``context`` tokens that an engine can hold."""
    longest = max((len(p.tokens) for p in prompts), default=0)
    if longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"{longest} prompt tokens and {sampling.max_new_tokens} new ones exceed the {context} tokens that the "
            f"engine attends to: lower rollout.max_new_tokens, or {fix}"
        )


class RolloutEngine(Protocol):
    """Turns prompts into generations under the policy, or under the reference model (π_init).

    An engine holds exactly one policy version. ``sync`` hands it the current weights; ``generate`` refuses with
    :class:`StalePolicyError` when ``version`` is not the one that it holds, so no rollout is ever made by an old
    policy unnoticed. Each prompt brings its own seed; the result does not depend on the order of the prompts.
    """

    @property
    def version(self) -> int: ...

    def sync(self, version: int) -> None:
        """Take over the policy's current weights and call them ``version``."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        version: int,
        reference: bool = False,
        on_finish: OnFinish | None = None,
    ) -> list[Generation]:
        """One generation per prompt, in the order of ``prompts``. ``reference=True`` samples from π_init."""
        ...

    def sleep(self) -> None:
        """Leave memory to the trainer until the next :meth:`sync`; what the engine held may be gone until then."""
        ...

    def scalars(self) -> Mapping[str, float]:
        """How the engine is doing, for the charts: agreement with the trainer, failures survived."""
        ...

    def close(self) -> None: ...
