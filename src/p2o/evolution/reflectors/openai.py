"""Teacher-Ref: a stronger model behind any OpenAI-compatible endpoint, which may fail in many ways."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from openai import AsyncOpenAI

from p2o.config.schema import OpenAIReflector as EndpointConfig
from p2o.evolution.reflectors import endpoint
from p2o.evolution.reflectors.base import Reflection, ReflectionJob, UnreachableError
from p2o.evolution.reflectors.endpoint import CallError, Reply
from p2o.evolution.reflectors.meta_prompt import extract_template, render
from p2o.evolution.reflectors.spending import Spending
from p2o.rollout.ledger import Ledger
from p2o.types import Phase

log = logging.getLogger(__name__)


class OpenAIReflector:
    """Asks for all templates of an iteration at once, ``concurrency`` calls at a time.

    Every call has a deadline; failures that may pass are retried with growing waits, or after the time that the
    server names. ``max_calls`` and ``max_tokens`` bound what the *run* spends, its killed processes included, through
    the file ``spent``; before a call, its prompt and its longest possible reply are booked there.

    After ``breaker_failures`` failures in a row, or one that no waiting fixes, the endpoint is left alone, and tried
    again with a single call every ``breaker_cooldown_s`` seconds. Failures by kind:

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
        counts = ledger.by_phase[Phase.REFLECTION]
        tokens = counts.prompt_tokens + counts.generated_tokens
        self._spending = Spending(spent, calls=counts.reflection_calls, tokens=tokens)
        self._failed = 0
        """Failures in a row."""
        self._closed_until = 0.0

    def check(self) -> None:
        """Raise ``ReflectorError`` if the model, the key or the address is missing, or nobody answers.

        The endpoint is asked for its models, which costs nothing. What may pass (a stall, an overload) is only logged.
        """
        endpoint.check(self.config)
        address, model = endpoint.address_of(self.config), self.config.model
        try:
            listed = asyncio.run(endpoint.models(self.config))
        except CallError as error:
            reason = f"{error.kind}: {' '.join(self._redact(str(error)).split())[:300]}"
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
        if listed and model not in listed:
            log.warning(
                f"reflector: {address} does not list reflector.model={model} among its {len(listed)} models: give one "
                "of them, or reflector.base_url=<address> (or OPENAI_BASE_URL)"
            )

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        """One reflection per job, in order; whatever happens, a job's failure is in its ``error``."""
        started = time.perf_counter()
        reflections = asyncio.run(self._reflect(jobs))
        self.ledger.add(Phase.REFLECTION, seconds=time.perf_counter() - started)
        return reflections

    async def _reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        slots = asyncio.Semaphore(self.config.concurrency)
        async with endpoint.connect(self.config) as client:

            async def work(job: ReflectionJob) -> Reflection:
                async with slots:
                    return await self._reflect_one(client, job)

            return await asyncio.gather(*map(work, jobs))

    async def _reflect_one(self, client: AsyncOpenAI, job: ReflectionJob) -> Reflection:
        prompt = render(job, self.max_template_tokens, self.config.max_prompt_tokens, self.count_tokens)
        if prompt is None:
            self._note("too_long", "not even one example fits reflector.max_prompt_tokens")
            return Reflection(None, error="too_long")
        rng = random.Random(job.seed)
        for attempt in itertools.count():
            try:
                reply = await self._call(client, prompt)
                break
            except CallError as error:
                self._note(error.kind, str(error))
                patience = self.config.max_wait_s
                backoff = min(self.config.backoff_s * 2**attempt * rng.uniform(0.5, 1.0), patience)
                wait = backoff if error.wait is None else error.wait
                if error.kind not in endpoint.RETRIED or attempt == self.config.max_retries or wait > patience:
                    return Reflection(None, error=error.kind)
                await asyncio.sleep(wait)
        raw = self._redact(reply.text)
        text, kind = extract_template(raw)
        if kind is not None:
            self._note(kind, raw)
        return Reflection(text, raw, reply.prompt_tokens, reply.completion_tokens, error=kind)

    async def _call(self, client: AsyncOpenAI, prompt: str) -> Reply:
        """One paid call, within the caps and past the breaker."""
        config, asked = self.config, self.count_tokens(prompt)
        longest = asked + config.max_new_tokens
        if config.max_calls is not None and self._spending.calls >= config.max_calls:
            raise CallError("capped", f"reflector.max_calls={config.max_calls} is reached")
        if config.max_tokens is not None and self._spending.tokens + longest > config.max_tokens:
            raise CallError("capped", f"reflector.max_tokens={config.max_tokens} is reached")
        if self._failed >= config.breaker_failures:
            if time.monotonic() < self._closed_until:
                raise CallError("breaker", "the endpoint failed too often in a row")
            self._closed_until = time.monotonic() + config.breaker_cooldown_s  # the others wait for what this one finds
        self._spending.add(1, longest)
        self.ledger.add(Phase.REFLECTION, reflection_calls=1)
        try:
            reply = await endpoint.ask(client, config, prompt, self.count_tokens)
        except CallError as error:
            self._settle(longest, *((0, 0) if error.kind in endpoint.UNBILLED else (asked, config.max_new_tokens)))
            if error.kind not in ("rate_limit", "refusal", "request", "too_long"):  # those are signs of life
                self._failed = config.breaker_failures if error.kind in ("auth", "tls") else self._failed + 1
                self._closed_until = time.monotonic() + config.breaker_cooldown_s
            raise
        self._settle(longest, reply.prompt_tokens, reply.completion_tokens)
        self._failed = 0
        return reply

    def _settle(self, booked: int, prompt_tokens: int, generated_tokens: int) -> None:
        self._spending.add(0, prompt_tokens + generated_tokens - booked)
        self.ledger.add(Phase.REFLECTION, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)

    def _note(self, kind: str, detail: str) -> None:
        """Count a failure, and log it: the first of its kind as a warning."""
        level = logging.INFO if self.failures[kind] else logging.WARNING
        log.log(level, "reflector: %s: %.300r", kind, self._redact(detail))
        self.failures[kind] += 1

    def _redact(self, text: str) -> str:
        """The text without the key, in case the endpoint sends it back."""
        return text.replace(endpoint.key_of(self.config), "[api key]")
