"""Teacher-Ref: a stronger model behind any OpenAI-compatible endpoint, which may fail in every way."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from p2o.config.schema import OpenAIReflector as EndpointConfig
from p2o.evolution.reflectors.base import Reflection, ReflectionJob, UnreachableError
from p2o.evolution.reflectors.endpoint import UNBILLED, CallError, Endpoint, Reply, address_of, check
from p2o.evolution.reflectors.meta_prompt import extract_template, render
from p2o.evolution.reflectors.spending import Spending
from p2o.rollout.ledger import Ledger
from p2o.types import Phase

log = logging.getLogger(__name__)


class Breaker:
    """Keeps calls from an endpoint that is down.

    Opens after ``limit`` failures in a row, at once after one that no waiting mends; then lets a single call through
    every ``cooldown_s`` seconds until one succeeds.
    """

    def __init__(self, limit: int, cooldown_s: float) -> None:
        self.limit = limit
        self.cooldown_s = cooldown_s
        self._failures = 0
        self._opened = 0.0

    def allows(self, now: float) -> bool:
        if self._failures < self.limit:
            return True
        if now - self._opened < self.cooldown_s:
            return False
        self._opened = now
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now: float, *, for_good: bool) -> None:
        self._failures = self.limit if for_good else self._failures + 1
        if self._failures >= self.limit:
            self._opened = now


class OpenAIReflector:
    """Asks for all templates of an iteration at once, ``concurrency`` calls at a time.

    Every call has a deadline; failures that may pass are repeated with growing waits, or after the time that the
    server names. ``max_calls`` and ``max_tokens`` bound what the *run* spends, its killed processes included, by the
    file ``spent``; before a call its prompt and its longest possible reply are booked there. Failures by kind:

    connection | dns | tls | auth | rate_limit | server | timeout | request (another 4xx) | bad_response | empty |
    refusal | too_long | capped | breaker, and of the reply's form unfenced | truncated
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        max_template_tokens: int,
        count_tokens: Callable[[str], int],
        ledger: Ledger,
        spent: Path,
    ) -> None:
        """``count_tokens`` is an estimate here: the endpoint's tokenizer is not known."""
        self.config = config
        self.max_template_tokens = max_template_tokens
        self.count_tokens = count_tokens
        self.ledger = ledger
        self.failures: Counter[str] = Counter()
        self._breaker = Breaker(config.breaker_failures, config.breaker_cooldown_s)
        counts = ledger.by_phase[Phase.REFLECTION]
        tokens = counts.prompt_tokens + counts.generated_tokens
        self._spending = Spending(spent, calls=counts.reflection_calls, tokens=tokens)

    def check(self) -> None:
        """Raise ``ReflectorError`` where the model, the key or the address is missing, or nobody is there.

        The endpoint is asked for its models, which costs nothing. What may pass (a stall, an overload) is only told.
        """
        check(self.config)
        address, model = address_of(self.config), self.config.model
        try:
            models = asyncio.run(self._models())
        except CallError as error:
            reason = f"{error.kind}: {' '.join(str(error).split())[:300]}"
            if error.kind == "auth":
                raise UnreachableError(
                    f"{address} refuses the key in the environment variable {self.config.api_key_env} "
                    "(reflector.api_key_env): export the key of this endpoint, or give reflector.base_url=<that of the "
                    f"key> (or OPENAI_BASE_URL) [{reason}]"
                ) from None
            if error.kind in ("connection", "dns", "tls"):
                raise UnreachableError(
                    f"{address} cannot be reached: give reflector.base_url=<address> (or OPENAI_BASE_URL), or "
                    f"reflector=strategies for the built-in teacher [{reason}]"
                ) from None
            if error.kind != "request":  # not every server keeps a list
                log.warning("reflector: %s does not say which models it has [%s]", address, reason)
            return
        if models and model not in models:
            log.warning(
                "reflector: %s does not list reflector.model=%s among its %d models: give one of its own, or "
                "reflector.base_url=<address> (or OPENAI_BASE_URL)",
                address,
                model,
                len(models),
            )

    async def _models(self) -> frozenset[str]:
        async with Endpoint(self.config) as endpoint:
            return await endpoint.models()

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        """One reflection a job, in order; whatever happens, a job's failure is in its ``error``."""
        started = time.perf_counter()
        reflections = asyncio.run(self._reflect(jobs))
        self.ledger.add(Phase.REFLECTION, seconds=time.perf_counter() - started)
        return reflections

    async def _reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        slots = asyncio.Semaphore(self.config.concurrency)
        async with Endpoint(self.config) as endpoint:

            async def work(job: ReflectionJob) -> Reflection:
                async with slots:
                    return await self._reflect_one(endpoint, job)

            return await asyncio.gather(*map(work, jobs))

    async def _reflect_one(self, endpoint: Endpoint, job: ReflectionJob) -> Reflection:
        prompt = render(job, self.max_template_tokens, self.config.max_prompt_tokens, self.count_tokens)
        if prompt is None:
            self._note("too_long", "not even one example fits reflector.max_prompt_tokens")
            return Reflection(None, error="too_long")
        rng = random.Random(job.seed)
        for attempt in itertools.count():
            try:
                reply = await self._call(endpoint, prompt)
                break
            except CallError as error:
                self._note(error.kind, str(error))
                wait = self._wait(error, attempt, rng)
                if wait is None:
                    return Reflection(None, error=error.kind)
                await asyncio.sleep(wait)
        text, kind = extract_template(reply.text)
        if kind is not None:
            self._note(kind, reply.text)
        return Reflection(text, reply.text, *self._tokens(prompt, reply), error=kind)

    def _wait(self, error: CallError, attempt: int, rng: random.Random) -> float | None:
        """Seconds until the next attempt; None = give up."""
        if not error.retry or attempt == self.config.max_retries:
            return None
        if error.wait is not None:
            return error.wait if error.wait <= self.config.max_wait_s else None
        backoff: float = self.config.backoff_s * 2**attempt * rng.uniform(0.5, 1.0)
        return min(backoff, self.config.max_wait_s)

    async def _call(self, endpoint: Endpoint, prompt: str) -> Reply:
        """One paid call, within the caps and past the breaker."""
        asked = self.count_tokens(prompt)
        longest = asked + self.config.max_new_tokens
        if self.config.max_calls is not None and self._spending.calls >= self.config.max_calls:
            raise CallError("capped", f"reflector.max_calls={self.config.max_calls} is reached")
        if self.config.max_tokens is not None and self._spending.tokens + longest > self.config.max_tokens:
            raise CallError("capped", f"reflector.max_tokens={self.config.max_tokens} is reached")
        if not self._breaker.allows(time.monotonic()):
            raise CallError("breaker", "the endpoint failed too often in a row")
        self._spending.book(longest)
        self.ledger.add(Phase.REFLECTION, reflection_calls=1)
        try:
            reply = await endpoint.ask(prompt)
        except CallError as error:
            unbilled = error.kind in UNBILLED
            self._settle(longest, *((0, 0) if unbilled else (asked, self.config.max_new_tokens)))
            if error.kind not in ("rate_limit", "refusal", "request", "too_long"):  # those are signs of life
                self._breaker.failed(time.monotonic(), for_good=error.kind in ("auth", "tls"))
            raise
        self._settle(longest, *self._tokens(prompt, reply))
        self._breaker.succeeded()
        return reply

    def _settle(self, booked: int, prompt_tokens: int, generated_tokens: int) -> None:
        self._spending.settle(booked, prompt_tokens + generated_tokens)
        self.ledger.add(Phase.REFLECTION, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)

    def _tokens(self, prompt: str, reply: Reply) -> tuple[int, int]:
        """(prompt, completion) tokens as the endpoint counts them, or our estimate where it does not say."""
        asked, made = reply.prompt_tokens, reply.completion_tokens
        return (
            self.count_tokens(prompt) if asked is None else asked,
            self.count_tokens(reply.text) if made is None else made,
        )

    def _note(self, kind: str, detail: str) -> None:
        """Count a failure, and log it: the first of its kind as a warning."""
        log.log(logging.INFO if self.failures[kind] else logging.WARNING, "reflector: %s: %.300r", kind, detail)
        self.failures[kind] += 1
