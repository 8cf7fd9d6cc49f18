"""One call to an OpenAI-compatible chat endpoint: a reply, or a failure with a name.

The client's own retries are off. They would hide calls that are paid for, they do not cover an empty reply, and what
they repeat differs between the client's versions; ``openai.py`` has the loop.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from p2o.config.rules import is_address
from p2o.config.schema import OpenAIReflector as EndpointConfig
from p2o.evolution.reflectors.base import ReflectorError

MAX_BODY_BYTES = 1 << 20
"""More than any reply that a template could be taken from."""

DEFAULT_ADDRESS = "https://api.openai.com/v1"
"""The client's own default address."""

MODELS_S = 10.0
"""Seconds that an endpoint has to list its models."""

RETRIED = frozenset({"connection", "dns", "rate_limit", "server", "timeout", "bad_response", "empty"})
"""Failures that may pass. The others (auth, tls, request, refusal, too_long) would recur."""

UNBILLED = frozenset({"connection", "dns", "tls", "auth", "rate_limit", "server", "request"})
"""Failures before the endpoint generated anything; all others are charged as if it had."""

REFUSAL = re.compile(r"\W*(i'?m sorry|i am sorry|sorry,|i can(?:no|')t|i won'?t|i am unable|i'm unable)", re.IGNORECASE)


class CallError(Exception):
    """A call failed: its ``kind``, and how many seconds the server asks to wait, if it does."""

    def __init__(self, kind: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Reply:
    """The text of a completion, and the tokens that it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def check(config: EndpointConfig) -> None:
    """Raise :class:`ReflectorError` if the model, the key or the address is missing or malformed."""
    if not config.model or config.model == "???":
        raise ReflectorError("reflector.model is not set: give the name that the endpoint knows the model by")
    key_of(config)
    address = address_of(config)
    if not is_address(address):
        raise ReflectorError(
            f"reflector.base_url={address} (or OPENAI_BASE_URL) is not an address: use http(s)://host[:port]/path"
        )


def address_of(config: EndpointConfig) -> str:
    """The address that the client asks, without a password."""
    address = config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_ADDRESS
    return re.sub(r"(?s)^([^/]*//)?.*@", r"\1", address)


def key_of(config: EndpointConfig) -> str:
    """The key, from the environment; it is kept nowhere else."""
    variable = f"the environment variable {config.api_key_env} (reflector.api_key_env)"
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise ReflectorError(
            f"{variable} is not set: export the key (any text for a server that needs none), or use "
            "reflector=strategies for the built-in teacher"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ReflectorError(f"{variable} holds characters that no key has, such as a space or a line break")
    return key


def connect(config: EndpointConfig) -> openai.AsyncOpenAI:
    """A client for as long as one event loop runs; ``async with`` closes its connections."""
    return openai.AsyncOpenAI(
        api_key=key_of(config),
        base_url=config.base_url,
        timeout=config.timeout_s,
        max_retries=0,
    )


async def ask(
    client: openai.AsyncOpenAI, config: EndpointConfig, prompt: str, count_tokens: Callable[[str], int]
) -> Reply:
    """The reply to one user message, at most ``timeout_s`` seconds later; raises :class:`CallError`.

    ``count_tokens`` estimates what the endpoint does not say.
    """
    request = client.chat.completions.with_streaming_response.create(
        model=config.model,
        messages=[{"role": "user", "content": prompt}],
        temperature=config.temperature,
        max_tokens=config.max_new_tokens,
    )
    text, *counts = _parse(await _body(request, config.timeout_s))
    asked, made = (
        count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else count_tokens(of)
        for count, of in zip(counts, (prompt, text), strict=True)
    )
    return Reply(text, asked, made)


async def models(config: EndpointConfig) -> frozenset[str]:
    """Names of the models that the endpoint lists; none if it lists them in another form.

    Raises :class:`CallError`, after :data:`MODELS_S` seconds at the latest.
    """
    async with connect(config) as client:
        body = await _body(client.models.with_streaming_response.list(), min(MODELS_S, config.timeout_s))
    try:
        return frozenset(str(card["id"]) for card in json.loads(body)["data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return frozenset()


async def _body(request: AbstractAsyncContextManager[Any], seconds: float) -> bytes:
    """The body of a reply. The deadline holds for the call as a whole: a reply that drips in does not outlive it."""
    try:
        async with asyncio.timeout(seconds), request as response:
            body = b""
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise CallError("too_long", f"a reply of more than {MAX_BODY_BYTES} bytes")
            return body
    except CallError:
        raise
    except Exception as error:  # httpx's own errors surface while the body is read; its module name varies
        raise _named(error, seconds) from None


def _parse(body: bytes) -> tuple[str, Any, Any]:
    """(text, prompt tokens, completion tokens) in a chat completion, whatever else the server sent."""
    try:
        value = json.loads(body)
        choice = (value["choices"] or [{"message": {}}])[0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        usage = value.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CallError("bad_response", f"not a chat completion ({type(error).__name__})") from None
    if refusal or finish == "content_filter":
        raise CallError("refusal", str(refusal or finish))
    if content is None or content == "":
        raise CallError("empty", "no content")
    if not isinstance(content, str):
        raise CallError("bad_response", f"content is a {type(content).__name__}")
    if "```" not in content and REFUSAL.match(content):
        raise CallError("refusal", content)
    return content, *counts


def _named(error: Exception, seconds: float) -> CallError:
    """The failure behind an exception of the client."""
    if isinstance(error, openai.APIStatusError):
        return _status_error(error)
    chain = list(_chain(error))
    if any(isinstance(one, TimeoutError | openai.APITimeoutError) for one in chain):
        return CallError("timeout", f"no complete reply within {seconds} s")
    kind = "bad_response"  # a reply had begun: the client wraps only what happens before
    if isinstance(error, openai.APIConnectionError):
        causes = {"tls": ssl.SSLError, "dns": socket.gaierror}
        kind = next((k for k, cause in causes.items() if any(isinstance(one, cause) for one in chain)), "connection")
    return CallError(kind, "; ".join(f"{type(one).__name__}: {one}" for one in chain))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status_error(error: openai.APIStatusError) -> CallError:
    status = error.status_code
    detail = f"status {status}: {error.message[:1000]}"
    wait = _retry_after(error.response.headers)
    if status in (401, 403):
        return CallError("auth", detail)
    if status == 429:  # a quota that is used up does not come back while a run waits
        return CallError("rate_limit", detail, math.inf if error.code == "insufficient_quota" else wait)
    if status in (408, 409) or status >= 500:
        return CallError("server", detail, wait)
    return CallError("too_long" if error.code == "context_length_exceeded" else "request", detail)


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait (a number or an HTTP date); None if it does not say so intelligibly."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))  # 0 for nan
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
