"""From requests to graded rollouts: the one service behind training, template evaluation and validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from p2o.faults import fault_point
from p2o.profile import timed
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

Progress = Callable[[int], None]
"""Called with the number of sequences that have ended so far in this call."""


class Grader(Protocol):
    """Judges answers in the background, see :class:`p2o.rewards.GraderPool`."""

    def submit(self, problem: Problem, text: str) -> Future[Grade]: ...


class Sampler:
    """Renders, generates, grades and books. An answer is graded while others are still being decoded."""

    def __init__(self, engine: RolloutEngine, renderer: PromptRenderer, grader: Grader, ledger: Ledger) -> None:
        self.engine = engine
        self.renderer = renderer
        self.grader = grader
        self.ledger = ledger

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
        fault_point("sample", phase=phase, version=version, requests=requests)
        started = time.perf_counter()
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
        rollouts = [
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
        fault_point("all answers there, none booked")
        self._book(phase, prompts, generations, started, rollouts=len(rollouts))
        return rollouts

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
        started = time.perf_counter()
        prompts = [Prompt(self.renderer.render_chat(text), seed) for text, seed in zip(texts, seeds, strict=True)]
        with timed("generate"):
            replies = self.engine.generate(prompts, sampling, version=version, reference=reference)
        self._book(Phase.REFLECTION, prompts, replies, started, reflection_calls=len(replies))
        return replies

    def _render(self, request: Request) -> tuple[int, ...]:
        try:
            return self.renderer.render(request.problem.question, request.template)
        except PromptTooLongError as error:
            where = f"problem {request.problem.id} under template {template_id(request.template)}"
            raise PromptTooLongError(error.tokens, error.limit, where) from None

    def _book(
        self, phase: Phase, prompts: Sequence[Prompt], made: Sequence[Generation], started: float, **counts: int
    ) -> None:
        self.ledger.add(
            phase,
            prompt_tokens=sum(len(p.tokens) for p in prompts),
            generated_tokens=sum(len(g.tokens) for g in made),
            seconds=time.perf_counter() - started,
            **counts,
        )


def _verdict(grade: Future[Grade]) -> Grade:
    verdict = grade.result()
    fault_point("an answer graded")
    return verdict
