"""The one interface between p2o and whatever generates text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from p2o.types import Generation, Prompt, SamplingParams

OnFinish = Callable[[int, Generation], None]
"""Called once a prompt with its position in the call, as soon as its generation ended."""


class StalePolicyError(RuntimeError):
    """The engine holds another policy version than the one it was asked to sample from."""


class EngineError(RuntimeError):
    """The engine cannot go on: it is not installed, does not start, keeps dying, or does not hold the policy."""


def refuse_stale(held: int, asked: int) -> None:
    """Raise :class:`StalePolicyError` where an engine holds another version than the one that it is asked for."""
    if held != asked:
        raise StalePolicyError(f"the engine holds policy version {held}, not {asked}: call sync first")


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
        """One generation a prompt, in the order of ``prompts``. ``reference=True`` samples from π_init."""
        ...

    def sleep(self) -> None:
        """Leave the accelerator's memory to the trainer until the next call, which wakes the engine."""
        ...

    def scalars(self) -> Mapping[str, float]:
        """How the engine is doing, for the charts: agreement with the trainer, failures survived."""
        ...

    def close(self) -> None: ...
