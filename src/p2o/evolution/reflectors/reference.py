"""Self-Ref: the initial policy π_init as its own reflector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from p2o.evolution.reflectors.base import Reflection, ReflectionJob
from p2o.evolution.reflectors.meta_prompt import extract_template, render
from p2o.types import Generation

Complete = Callable[[list[str], list[int]], list[Generation]]
"""Replies of the reference model to user messages, one seed per message; the sampler books their tokens."""


class ReferenceReflector:
    """Asks the reference model, all jobs in one batch.

    ``complete`` has booked every call when it returns. A small model often leaves out the fence or ends before closing
    it: such replies are failures, counted by kind.
    """

    def __init__(
        self,
        complete: Complete,
        *,
        max_prompt_tokens: int,
        max_template_tokens: int,
        count_tokens: Callable[[str], int],
    ) -> None:
        self.complete = complete
        self.max_prompt_tokens = max_prompt_tokens
        self.max_template_tokens = max_template_tokens
        self.count_tokens = count_tokens
        self.failures: Counter[str] = Counter()

    def check(self) -> None:
        """Nothing can be missing: the reference model is the policy's own."""

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        """One reflection per job; ``too_long`` if not even one example fits ``max_prompt_tokens``.

        Errors of the engine are not failures of a job: they propagate.
        """
        prompts = [render(job, self.max_template_tokens, self.max_prompt_tokens, self.count_tokens) for job in jobs]
        asked = [(i, prompt, jobs[i].seed) for i, prompt in enumerate(prompts) if prompt is not None]
        replies = self.complete([prompt for _, prompt, _ in asked], [seed for *_, seed in asked]) if asked else []
        reflections = [Reflection(None, error="too_long") for _ in jobs]
        for (i, prompt, _), reply in zip(asked, replies, strict=True):
            text, error = extract_template(reply.text)
            reflections[i] = Reflection(text, reply.text, self.count_tokens(prompt), len(reply.tokens), error)
        self.failures.update(reflection.error for reflection in reflections if reflection.error)
        return reflections
