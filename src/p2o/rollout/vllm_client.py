"""A vLLM server behind its HTTP endpoints: models, weights, completions. Every failure has one of two names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import openai

from p2o.rollout.engine import EngineError
from p2o.rollout.handover import Weights

MODELS_S = 30.0
"""Seconds in which a server says which models it has."""
LEAVE_S = 5.0
"""Seconds in which a server forgets an adapter at the end."""

COMPLETIONS = "/v1/completions"
START = "docs/rollout.md says how to start one"


class ServerFailedError(Exception):
    """The server is away, stalls or failed; another one, or the same one later, may do better."""


class Server:
    """A server by its address, e.g. ``http://localhost:8000`` (with or without ``/v1``).

    A request that the server refuses as it stands is an :class:`EngineError`, since it would be refused again;
    everything else that goes wrong is a :class:`ServerFailedError`. No call outlasts ``timeout_s``.
    """

    def __init__(self, url: str, key: str, timeout_s: float, http_client: Any = None) -> None:
        self.name = url.rstrip("/").removesuffix("/v1")
        """Of the server in messages."""
        self.fix = f"start {self.name} with a larger --max-model-len"
        """What gives it room for longer sequences."""
        self.base = ""
        """Name of the model without any adapter; known after :meth:`start`."""
        self.context = 0
        """Tokens that a sequence may have, prompt included; known after :meth:`start`."""
        self.held: set[str] = set()
        """Names of the weights that it holds; known after :meth:`start`."""
        self.mismatch: float | None = None
        """What the probe found with the current weights; None before that."""
        self.down = ""
        """What it did that it was dropped for; empty otherwise."""
        self.again_at = 0.0
        """When one that was dropped is asked again, by the loop's clock."""
        self._given: set[str] = set()
        """Names of the adapters that it was ever given."""
        self._timeout_s = timeout_s
        self._complete_s: float | None = timeout_s
        # the client wants a key; a server that wants none does not look at it
        self._client = openai.AsyncOpenAI(
            base_url=self.name, api_key=key or "none", timeout=None, max_retries=0, http_client=http_client
        )

    async def start(self) -> None:
        """Find it up, with its weights in memory, and what it holds."""
        async with asyncio.timeout(min(MODELS_S, self._timeout_s)):
            reply = await self._call("GET", "/v1/models")
        cards = reply.get("data") if isinstance(reply, dict) else None
        bases = [card for card in cards or () if card.get("parent") is None]
        if not bases or not bases[0].get("max_model_len"):
            raise EngineError(f"{self.name} is not a vLLM server: {START}")
        self.base, self.context = bases[0]["id"], int(bases[0]["max_model_len"])
        self.held = {card["id"] for card in cards or () if card.get("parent") is not None}

    async def load(self, weights: Weights) -> None:
        """Have it hold an adapter under a name that it has not heard before, in the place of the one before."""
        try:
            await self._send(weights)
        except EngineError as error:
            if "already been loaded" in str(error):  # the server is in the list under two addresses
                return
            raise EngineError(
                f"{error}. It must be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a "
                "--max-lora-rank of at least tuning.r, and see the adapter's folder under the same path "
                "(rollout.adapter_dir: a folder that it shares)"
            ) from None
        self._given.add(weights.name)
        self.held.add(weights.name)
        await self._unload(self._given & self.held - {weights.name})

    async def wake_cache(self) -> None:
        """Have it ready for completions: it does not sleep."""

    async def watch(self) -> None:
        """Run until it gives no sign of life: here every call has its time."""
        await asyncio.Event().wait()

    async def sleep(self) -> None:
        """Nothing to do: it has an accelerator of its own."""

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A completion's one choice (``token_ids``, their ``logprobs``, ``finish_reason``) and, as ``cached``, how many
        tokens of the prompt the prefix cache held."""
        reply = await self._call("POST", COMPLETIONS, body)
        try:
            choice = reply["choices"][0]
            logprobs = choice["logprobs"]["token_logprobs"]
            whole = len(choice["token_ids"]) == len(logprobs) and None not in logprobs
        except (KeyError, IndexError, TypeError):
            whole = False
        if not whole or choice["finish_reason"] not in ("stop", "length"):
            raise ServerFailedError("sent a completion without token_ids and their log-probs")
        cached = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
        return {**choice, "cached": cached.get("cached_tokens") or 0}

    def drop(self) -> str:
        """Give it up until it is asked again; what is known of its end."""
        return ""

    async def close(self) -> None:
        """Leave it as it was found, if it answers."""
        with suppress(EngineError, ServerFailedError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._unload(self._given & self.held)
        await self._client.close()

    async def _send(self, weights: Weights) -> None:
        for path, body in weights.calls().items():
            await self._call("POST", path, body)

    async def _unload(self, adapters: set[str]) -> None:
        """Take adapters from it; one that it does not have any more does no harm."""
        for name in adapters:
            with suppress(ServerFailedError):
                await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server answers to a request."""
        seconds = self._complete_s if path == COMPLETIONS else self._timeout_s
        try:
            async with asyncio.timeout(seconds):
                if method == "GET":
                    return await self._client.get(path, cast_to=object)
                return await self._client.post(path, cast_to=object, body=dict(body or {}))
        except TimeoutError:
            raise ServerFailedError(f"did not answer {path} within {seconds:.0f} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(path, error) from None
        except Exception as error:  # the HTTP library's own errors surface too; its module's name varies
            raise ServerFailedError(f"did not answer {path}: {type(error).__name__}: {error}") from None

    def _refusal(self, path: str, error: openai.APIStatusError) -> Exception:
        said = f"answered {path} with status {error.status_code}: {error.response.text[:500]}"
        if error.status_code in (401, 403):
            return EngineError(f"{self.name} {said}. Export its key under the name that rollout.api_key_env gives")
        if error.status_code in (400, 422) or (error.status_code == 404 and path == "/v1/load_lora_adapter"):
            return EngineError(f"{self.name} {said}")
        return ServerFailedError(said)
