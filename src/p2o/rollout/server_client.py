"""One ``vllm serve`` endpoint: its models, its adapters, a completion. Every failure has one of two names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai

from p2o.rollout.engine import EngineError

MODELS_S = 30.0
"""Seconds in which a server says which models it has."""

START = "docs/rollout.md says how to start one"


class ServerFailedError(Exception):
    """The server is away, stalls or failed; another one, or the same one later, may do better."""


class Server:
    """A server by its address, e.g. ``http://localhost:8000`` (with or without ``/v1``).

    A request that the server refuses as it stands is an :class:`EngineError`, since it would be refused again;
    everything else that goes wrong is a :class:`ServerFailedError`. No call outlasts ``timeout_s``.
    """

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.base = ""
        """Name of the model without any adapter; known after :meth:`models`."""
        self.context = 0
        """Tokens that a sequence may have, prompt included; known after :meth:`models`."""
        self._timeout_s = timeout_s
        # the client wants a key; a server that wants none does not look at it
        self._client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key or "none", timeout=timeout_s, max_retries=0
        )

    async def models(self) -> frozenset[str]:
        """Names of the adapters that the server has."""
        async with asyncio.timeout(min(MODELS_S, self._timeout_s)):
            reply = await self._call("GET", "/models")
        cards = reply.get("data") if isinstance(reply, dict) else None
        bases = [card for card in cards or () if card.get("parent") is None]
        if not bases or not bases[0].get("max_model_len"):
            raise EngineError(f"{self.url} is not a vLLM server: {START}")
        self.base, self.context = bases[0]["id"], int(bases[0]["max_model_len"])
        return frozenset(card["id"] for card in cards or () if card.get("parent") is not None)

    async def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name that the server has not heard before."""
        try:
            await self._call("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except EngineError as error:
            if "already been loaded" in str(error):  # the server is in the list under two addresses
                return
            raise EngineError(
                f"{error}. It must be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a "
                f"--max-lora-rank of at least tuning.r, and see {folder.parent} under that path "
                "(rollout.adapter_dir: a folder that it shares)"
            ) from None

    async def unload(self, name: str) -> None:
        """Take an adapter from the server; one that it does not have any more does no harm."""
        with suppress(ServerFailedError):
            await self._call("POST", "/unload_lora_adapter", {"lora_name": name})

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The one choice of a completion: ``token_ids``, their ``logprobs``, ``finish_reason``."""
        reply = await self._call("POST", "/completions", body)
        try:
            choice = reply["choices"][0]
            logprobs = choice["logprobs"]["token_logprobs"]
            whole = len(choice["token_ids"]) == len(logprobs) and None not in logprobs
        except (KeyError, IndexError, TypeError):
            whole = False
        if not whole or choice["finish_reason"] not in ("stop", "length"):
            raise ServerFailedError("sent a completion without token_ids and their log-probs")
        return choice

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                if method == "GET":
                    return await self._client.get(path, cast_to=object)
                return await self._client.post(path, cast_to=object, body=dict(body or {}))
        except TimeoutError:
            raise ServerFailedError(f"did not answer {path} within {self._timeout_s:.0f} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(path, error) from None
        except Exception as error:  # the HTTP library's own errors surface too; its module's name varies
            raise ServerFailedError(f"did not answer {path}: {type(error).__name__}: {error}") from None

    def _refusal(self, path: str, error: openai.APIStatusError) -> Exception:
        said = f"answered {path} with status {error.status_code}: {error.response.text[:500]}"
        if error.status_code in (401, 403):
            return EngineError(f"{self.url} {said}. Export its key under the name that rollout.api_key_env gives")
        if error.status_code in (400, 422) or (error.status_code == 404 and path == "/load_lora_adapter"):
            return EngineError(f"{self.url} {said}")
        return ServerFailedError(said)
