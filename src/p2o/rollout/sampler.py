"""From requests to graded rollouts: the one service behind training, template evaluation and validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from p2o.faults import fault_point
from p2o.profile import timed
from p2o.ranks import ALONE, Ranks
from p2o.rollout.engine import RolloutEngine
from p2o.rollout.ledger import Ledger
from p2o.rollout.prompts import PromptRenderer, PromptTooLongError
from p2o.types import (
    Generation,
    Grade,
    Phase,
    Problem,
    Prompt,
    Request,
    Rollout,
    SamplingParams,
    template_id,
)

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with the number of sequences that have ended so far in this call."""


class Grader(Protocol):
    """Judges answers in the background, see :class:`p2o.rewards.GraderPool`."""

    def submit(self, problem: Problem, text: str) -> Future[Grade]: ...


class Sampler:
    """Renders, generates, grades and books. An answer is graded while others are still being decoded."""

    def __init__(
        self,
        engine: RolloutEngine,
        renderer: PromptRenderer,
        grader: Grader,
        ledger: Ledger,
        ranks: Ranks = ALONE,
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.grader = grader
        self.ledger = ledger
        self.ranks = ranks

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        *,
        phase: Phase,
        version: int,
        progress: Progress | None = None,
    ) -> list[Rollout]:
        """One graded rollout per request, in the order of ``requests``.

        A prompt over the limit raises :class:`PromptTooLongError` with the problem's id before anything is
        generated. The ledger's tokens, rollouts and seconds of ``phase`` are booked here; what counts as a metric
        call is the caller's to book.
        """
        self.ranks.command(("sample", (requests, sampling), {"phase": phase, "version": version}))
        fault_point("sample", phase=phase, version=version, requests=requests)
        started = time.perf_counter()

        def share() -> tuple[list[Rollout], float]:
            own = requests[self.ranks.rank :: self.ranks.size]
            told = progress and (lambda done: progress(min(done * self.ranks.size, len(requests))))
            return self._sample(own, sampling, version, told), time.perf_counter() - started

        rollouts, seconds = self._gathered(share, len(requests))
        fault_point("all answers there, none booked")
        self.ledger.add(
            phase,
            prompt_tokens=sum(len(rollout.prompt_tokens) for rollout in rollouts),
            generated_tokens=sum(len(rollout.tokens) for rollout in rollouts),
            seconds=seconds,
            rollouts=len(rollouts),
        )
        return rollouts

    def _sample(
        self, requests: Sequence[Request], sampling: SamplingParams, version: int, progress: Progress | None
    ) -> list[Rollout]:
        prompts = [Prompt(self._render(request), request.seed) for request in requests]
        grades: dict[int, Future[Grade]] = {}

        def on_finish(i: int, generation: Generation) -> None:
            with timed("grading"):
                grades[i] = self.grader.submit(requests[i].problem, generation.text)
            fault_point("an answer handed to the grader")
            if progress is not None:
                progress(len(grades))

        with timed("generate"):
            generations = self.engine.generate(prompts, sampling, version=version, on_finish=on_finish)
        with timed("grading"):
            verdicts = {i: _verdict(grade) for i, grade in grades.items()}
        return [
            Rollout(
                problem_id=request.problem.id,
                template_id=template_id(request.template),
                index=request.index,
                prompt_tokens=prompt.tokens,
                tokens=generation.tokens,
                logprobs=generation.logprobs,
                text=generation.text,
                finish_reason=generation.finish_reason,
                grade=verdicts[i],
                policy_version=version,
            )
            for i, (request, prompt, generation) in enumerate(zip(requests, prompts, generations, strict=True))
        ]

    def complete(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: SamplingParams,
        *,
        version: int,
        reference: bool = True,
    ) -> list[Generation]:
        """One reply per user message, by default of the reference model π_init; booked under reflection."""
        self.ranks.command(("complete", (texts, seeds, sampling), {"version": version, "reference": reference}))
        started = time.perf_counter()
        prompts = [Prompt(self.renderer.render_chat(text), seed) for text, seed in zip(texts, seeds, strict=True)]

        def share() -> tuple[list[Generation], float]:
            own = prompts[self.ranks.rank :: self.ranks.size]
            with timed("generate"):
                replies = self.engine.generate(own, sampling, version=version, reference=reference)
            return replies, time.perf_counter() - started

        replies, seconds = self._gathered(share, len(prompts))
        self.ledger.add(
            Phase.REFLECTION,
            prompt_tokens=sum(len(prompt.tokens) for prompt in prompts),
            generated_tokens=sum(len(reply.tokens) for reply in replies),
            seconds=seconds,
            reflection_calls=len(replies),
        )
        return replies

    def serve(self, command: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
        """Take part in a call that rank 0 makes while it leads the prompt phase."""
        name, arguments, options = command
        getattr(self, name)(*arguments, **options)

    def _gathered(self, share: Callable[[], tuple[list[T], float]], count: int) -> tuple[list[T], float]:
        """``count`` results, dealt to the ranks one by one, in the order of the call; seconds of the slowest rank."""
        shares = self.ranks.gather(share)
        return [shares[i % len(shares)][0][i // len(shares)] for i in range(count)], max(s for _, s in shares)

    def _render(self, request: Request) -> tuple[int, ...]:
        try:
            return self.renderer.render(request.problem.question, request.template)
        except PromptTooLongError as error:
            where = f"problem {request.problem.id} under template {template_id(request.template)}"
            raise PromptTooLongError(error.tokens, error.limit, where) from None


def _verdict(grade: Future[Grade]) -> Grade:
    verdict = grade.result()
    fault_point("an answer graded")
    return verdict
