"""One call to an OpenAI-compatible chat endpoint: a reply, or a failure with a name."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
"""Where the client turns to that is given no other."""

MODELS_S = 10.0
"""Seconds in which an endpoint says which models it has."""

RETRIED = frozenset({"connection", "dns", "rate_limit", "server", "timeout", "bad_response", "empty"})
"""Failures that may pass. The others (auth, tls, request, refusal, too_long) would come again."""

UNBILLED = frozenset({"connection", "dns", "tls", "auth", "rate_limit", "server", "request"})
"""Failures before the endpoint generated anything; all others are charged as if it had."""

REFUSAL = re.compile(r"\W*(i'?m sorry|i am sorry|sorry,|i can(?:no|')t|i won'?t|i am unable|i'm unable)", re.IGNORECASE)


class CallError(Exception):
    """A call failed: its ``kind``, and ``wait`` where the server says for how many seconds to stay away."""

    def __init__(self, kind: str, detail: str = "", wait: float | None = None, final: bool = False) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait = wait
        self.retry = kind in RETRIED and not final


@dataclass(frozen=True, slots=True)
class Reply:
    """The text of a completion, and the tokens that the endpoint says it took (None where it does not say)."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """An endpoint for as long as one event loop runs; ``async with`` opens and closes its connections."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._key = _key(config)

    async def __aenter__(self) -> Endpoint:
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._config.base_url,
            timeout=self._config.timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_raise_status]}),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, prompt: str) -> Reply:
        """The reply to one user message, at most ``timeout_s`` seconds later; raises :class:`CallError`."""
        async with self._bounded(self._config.timeout_s):
            reply = _parse(
                await self._body(
                    self._client.chat.completions.with_streaming_response.create(
                        model=self._config.model,
                        messages=[{"role": "user", "content": prompt}],
                        temperature=self._config.temperature,
                        max_tokens=self._config.max_new_tokens,
                    )
                )
            )
        return Reply(self._redact(reply.text), reply.prompt_tokens, reply.completion_tokens)

    async def models(self) -> frozenset[str]:
        """Names of the models that the endpoint lists, none where it lists them in a form of its own.

        Raises :class:`CallError`, after :data:`MODELS_S` seconds at the latest.
        """
        async with self._bounded(min(MODELS_S, self._config.timeout_s)):
            body = await self._body(self._client.models.with_streaming_response.list())
        try:
            return frozenset(str(card["id"]) for card in json.loads(body)["data"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return frozenset()

    @asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """The deadline holds for the call as a whole, so a reply that drips in a byte at a time does not outlive it.

        The key occurs in no reply and in no error, even where the endpoint sends it back.
        """
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise CallError("timeout", f"no complete reply within {seconds} s") from None
        except CallError as error:
            raise CallError(error.kind, self._redact(str(error)), error.wait, final=not error.retry) from None

    async def _body(self, request: AbstractAsyncContextManager[Any]) -> bytes:
        answered = False
        try:
            async with request as response:
                answered = True
                body = await _read(response.iter_bytes())
        except (CallError, TimeoutError):
            raise
        except Exception as error:  # httpx's own errors surface while the body is read; its module name varies
            raise _named(error, answered) from None
        if len(body) > MAX_BODY_BYTES:
            raise CallError("too_long", f"a reply of more than {MAX_BODY_BYTES} bytes")
        return body

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[api key]")


def check(config: EndpointConfig) -> None:
    """Raise :class:`ReflectorError` where the model, the key or the address is missing or malformed."""
    if not config.model or config.model == "???":
        raise ReflectorError("reflector.model is not set: give the name that the endpoint knows the model by")
    _key(config)
    address = address_of(config)
    if not is_address(address):
        raise ReflectorError(
            f"reflector.base_url={address} (or OPENAI_BASE_URL) is no address: use http(s)://host[:port]/path"
        )


def address_of(config: EndpointConfig) -> str:
    """Whom the client asks, without a password."""
    address = config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_ADDRESS
    user, at, host = address.rpartition("@")
    return f"{user.partition('//')[0]}//{host}" if at else address


def _key(config: EndpointConfig) -> str:
    variable = f"the environment variable {config.api_key_env} (reflector.api_key_env)"
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise ReflectorError(
            f"{variable} is not set: export the key (any text for a server that asks for none), or use "
            "reflector=strategies for the built-in teacher"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ReflectorError(f"{variable} holds characters that no key has, such as a space or a line break")
    return key


def _parse(body: bytes) -> Reply:
    """The reply in a chat completion, whatever else the server sent."""
    try:
        value = json.loads(body)
        (choice, *_) = value["choices"] or [None]
        if choice is None:
            raise CallError("empty", "no choices")
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        usage = value.get("usage") or {}
        tokens = tuple(_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
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
    return Reply(content, *tokens)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


async def _read(chunks: AsyncIterator[bytes]) -> bytes:
    """The body, or what of it came until it was longer than :data:`MAX_BODY_BYTES`."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


async def _raise_status(response: Any) -> None:
    """A hook of the HTTP client, since its owner would read the body of an error to its end, however far that is."""
    if response.is_error:
        raise _status_error(response.status_code, response.headers, await _read(response.aiter_bytes()))


def _named(error: Exception, answered: bool) -> CallError:
    """The failure behind an exception of the client; ``answered`` = a reply's headers had come."""
    chain = list(_chain(error))
    if (ours := next((e for e in chain if isinstance(e, CallError)), None)) is not None:
        return ours
    detail = "; ".join(f"{type(e).__name__}: {e}" for e in chain)
    if any(isinstance(e, TimeoutError | openai.APITimeoutError) for e in chain):
        return CallError("timeout", detail)
    if answered:
        return CallError("bad_response", detail)
    if any(isinstance(e, ssl.SSLError) for e in chain):
        return CallError("tls", detail)
    if any(isinstance(e, socket.gaierror) for e in chain):
        return CallError("dns", detail)
    return CallError("connection", detail)


def _status_error(status: int, headers: Any, body: bytes) -> CallError:
    detail = f"status {status}: {body[:1000].decode(errors='replace')}"
    code = _error_code(body)
    if status in (401, 403):
        return CallError("auth", detail)
    if status == 429:
        return CallError("rate_limit", detail, _retry_after(headers), final=code == "insufficient_quota")
    if status in (408, 409) or status >= 500:
        return CallError("server", detail, _retry_after(headers))
    return CallError("too_long" if code == "context_length_exceeded" else "request", detail)


def _error_code(body: bytes) -> Any:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait (a number or an HTTP date); None where it does not say so intelligibly."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if not math.isnan(seconds) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
