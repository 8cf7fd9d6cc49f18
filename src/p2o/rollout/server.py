"""The policy behind one or several ``vllm serve`` endpoints, which load its adapter anew at every sync.

Each version of the adapter is a folder and a name that no version had before, so a server's prefix cache never serves
keys and values of older weights; the reference model is the same server without the adapter. Requests wait in one
queue that every server takes from at its own pace.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import shutil
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from p2o.config.schema import VllmServerRollout
from p2o.files import scratch_folder
from p2o.policy.model import Policy
from p2o.profile import count, timed
from p2o.rollout.engine import EngineError, Lengths, OnFinish, refuse_lengths, refuse_long, refuse_stale
from p2o.rollout.hf.hf_engine import stop_token_ids
from p2o.rollout.probe import CONTINUED, DRAWN, SEED, TEMPERATURE, Probe, ProbeError, Scores
from p2o.rollout.server_client import START, Server, ServerFailedError
from p2o.types import Generation, Prompt, SamplingParams

log = logging.getLogger(__name__)

T = TypeVar("T")

FIXED = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": 0,
    "return_token_ids": True,
}
"""Said with every request: a server would otherwise take what cuts or bends the distribution from the model's
generation config. ``logprobs=0`` asks for those of the drawn tokens alone."""

LATE_S = 10.0
"""Seconds by which a server may take an adapter later than the first one did."""
LEAVE_S = 5.0
"""Seconds in which a server forgets the adapter at the end."""


class VllmServerEngine:
    """A :class:`~p2o.rollout.engine.RolloutEngine` over servers that somebody else starts and stops.

    A server that is away, stalls or answers nonsense is dropped with a warning, its requests go to the others, and it
    is asked again every ``retry_s``; one that comes back gets the current adapter and the probe before any request.
    ``max_retries`` waits of every server in one call end it with an :class:`EngineError`. Without
    ``rollout.adapter_dir`` adapters are handed over in a draft below ``run_dir``, or in a temporary folder.
    """

    def __init__(
        self, policy: Policy, config: VllmServerRollout, longest: Lengths | None = None, run_dir: Path | None = None
    ) -> None:
        if not config.urls:
            raise EngineError(f"rollout=vllm_server needs rollout.urls: {START}")
        self.policy = policy
        self.config = config
        self.longest = longest or {}
        self.probe = Probe(policy)
        self.drops = 0
        """How often a server was dropped."""
        self._version = -1
        shared = config.adapter_dir
        self._scratch = None if shared else scratch_folder(run_dir, "adapters")
        self._root = self._scratch or Path(shared or "").expanduser().resolve()
        self._run = f"p2o-{secrets.token_hex(4)}"
        self._saved = 0
        self._adapter: Path | None = None
        self._mismatches: dict[str, float] = {}
        """What the probe found on each server that holds the current adapter."""
        key = os.environ.get(config.api_key_env, "")
        self._servers = [Server(url, key, config.timeout_s) for url in config.urls]
        self._down: dict[str, tuple[str, float]] = {}
        """What the servers that are dropped did, and when by the loop's clock."""
        # The loop has a thread of its own, so that a signal meets the main thread in a plain wait and not in the loop.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm servers", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        return self._version

    @property
    def probe_mismatch(self) -> float:
        """The largest that the probe of this version found (see :mod:`p2o.rollout.probe`); NaN before any."""
        return max(self._mismatches.values(), default=math.nan)

    def scalars(self) -> Mapping[str, float]:
        return {"probe_mismatch": self.probe_mismatch, "drops": self.drops}

    def sync(self, version: int) -> None:
        """Write the adapter where the servers find it, have it loaded, and let them and the trainer score the probe.

        One server is enough; the others get it when they can be reached. Raises
        :class:`~p2o.rollout.probe.ProbeError` if a server disagrees with the trainer, :class:`EngineError` if it
        does not hold as long sequences as the run may need.
        """
        self._version = -1
        with timed("sync"):
            old, self._adapter = self._adapter, self._save(version)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
            self._mismatches = {}
            self._start(self._ready_one()).result()
        self._version = version

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        version: int,
        reference: bool = False,
        on_finish: OnFinish | None = None,
    ) -> list[Generation]:
        refuse_stale(self._version, version)
        results: dict[int, Generation] = {}
        finished: SimpleQueue[tuple[int, Generation] | None] = SimpleQueue()
        call = self._start(self._generate(prompts, sampling, reference, finished))
        call.add_done_callback(lambda _: finished.put(None))
        try:
            while (item := finished.get()) is not None:
                results[item[0]] = item[1]
                count(len(item[1].tokens))
                if on_finish is not None:
                    on_finish(*item)
            call.result()
        finally:
            call.cancel()
        return [results[i] for i in range(len(prompts))]

    def sleep(self) -> None:
        """Nothing to do: the servers have accelerators of their own."""

    def close(self) -> None:
        """Leave the servers as they were found, as far as they answer, and remove the adapter's folder."""
        self._version = -1
        if self._thread.is_alive():
            try:
                self._start(self._leave()).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()  # else a second call could ask a loop that is about to stop
        for folder in (self._adapter, self._scratch):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _save(self, version: int) -> Path:
        folder = self._root / f"{self._run}-{self._saved}-version-{version}"
        self._saved += 1
        self.policy.module.save_pretrained(str(folder))
        return folder

    # ------------------------------------------------------------------ in the loop's thread

    async def _ready_one(self) -> None:
        """Return when at least one server holds the adapter. Those that are dropped are not waited for where another is
        not: the next call to generate asks them again, beside its work."""
        for left in range(self.config.max_retries, -1, -1):
            up = [server for server in self._servers if server.url not in self._down]
            if await self._ready_in_time(up or self._servers):
                return
            if left:
                await asyncio.sleep(self.config.retry_s)
        raise self._gave_up()

    async def _ready_in_time(self, servers: Sequence[Server]) -> bool:
        """Whether any of the servers holds the adapter; one that takes ``LATE_S`` longer than the first is dropped."""
        tasks = {asyncio.ensure_future(self._ready(server)): server for server in servers}
        try:
            for task in asyncio.as_completed(tasks):
                if await task:
                    break
            else:
                return False
            on_time, late = await asyncio.wait(tasks, timeout=LATE_S)
            for task in late:
                said = f"did not take the adapter within {LATE_S:.0f} s of another server"
                self._drop(tasks[task], ServerFailedError(said))
            for task in on_time:
                task.result()
            return True
        finally:
            await _end(tasks)

    async def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        reference: bool,
        finished: SimpleQueue[tuple[int, Generation] | None],
    ) -> None:
        waiting: asyncio.Queue[int] = asyncio.Queue()
        for i in range(len(prompts)):
            waiting.put_nowait(i)
        left = len(prompts)
        done = asyncio.Event()

        async def take(server: Server) -> None:
            nonlocal left
            while True:
                i = await waiting.get()
                try:
                    made = await self._complete(server, prompts[i], sampling, reference)
                except BaseException:
                    waiting.put_nowait(i)
                    raise
                finished.put((i, made))
                left -= 1
                if not left:
                    done.set()

        async def serve(server: Server) -> None:
            for _ in range(self.config.max_retries + 1):
                await asyncio.sleep(self._rest(server))
                if await self._ready(server):
                    refuse_long(prompts, sampling, server.context, _mend(server))
                    try:
                        await _together(take(server) for _ in range(self.config.concurrency))
                    except ServerFailedError as error:
                        self._drop(server, error)

        async def give_up() -> None:
            await _together(serve(server) for server in self._servers)
            raise self._gave_up()

        if prompts:
            await _first(done.wait(), give_up())

    async def _ready(self, server: Server) -> bool:
        """Whether the server holds the adapter, which is loaded and probed if it did not."""
        assert self._adapter is not None
        name = self._adapter.name
        try:
            held = await server.models()
            refuse_lengths(self.longest, server.context, _mend(server))
            if name not in held:
                self._mismatches.pop(server.url, None)
                await server.load(name, self._adapter)
            for old in held - {name}:
                if old.startswith(self._run):
                    await server.unload(old)
            if server.url not in self._mismatches:
                await self._check(server, name)
        except (ServerFailedError, TimeoutError) as error:
            self._drop(server, error)
            return False
        if self._down.pop(server.url, None) is not None:
            log.warning("%s answers again", server.url)
        return True

    async def _check(self, server: Server, name: str) -> None:
        """The probe; the trainer's side of it runs here, while the main thread waits.

        The server draws and is not asked to score the text: vLLM 0.32 on a CPU dies of log-probs of a prompt under an
        adapter while it has other requests, and those may be another run's.
        """

        async def draw(temperature: float, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
            body = {"model": name, "prompt": list(self.probe.tokens), "temperature": temperature, "max_tokens": count}
            choice = await server.complete({**FIXED, **body, "top_p": 1.0, "seed": SEED, "ignore_eos": True})
            return tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])

        continued, scored = await draw(1.0, CONTINUED)
        scores = Scores(scored, *await draw(TEMPERATURE, DRAWN), continued)
        try:
            self._mismatches[server.url] = self.probe.check(scores, self.config.probe_tolerance)
        except ProbeError as error:
            raise ProbeError(f"{server.url}: {error}") from None

    async def _complete(self, server: Server, prompt: Prompt, sampling: SamplingParams, reference: bool) -> Generation:
        assert self._adapter is not None
        choice = await server.complete(
            {
                **FIXED,
                "model": server.base if reference else self._adapter.name,
                "prompt": list(prompt.tokens),
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": prompt.seed,
                "stop_token_ids": sorted(stop_token_ids(self.policy)),
            }
        )
        tokens = tuple(choice["token_ids"])
        text: Any = self.policy.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return Generation(tokens, tuple(choice["logprobs"]["token_logprobs"]), text, choice["finish_reason"])

    async def _leave(self) -> None:
        async def leave(server: Server) -> None:
            if self._adapter is not None and server.url in self._mismatches:
                with suppress(EngineError, TimeoutError):
                    async with asyncio.timeout(LEAVE_S):
                        await server.unload(self._adapter.name)
            await server.close()

        await asyncio.gather(*(leave(server) for server in self._servers))

    def _drop(self, server: Server, error: Exception) -> None:
        said = str(error) or f"did not answer: {type(error).__name__}"
        if server.url not in self._down:
            self.drops += 1
            log.warning("%s is dropped: it %s; it is asked again every %g s", server.url, said, self.config.retry_s)
        self._down[server.url] = said, self._loop.time()

    def _rest(self, server: Server) -> float:
        """Seconds until a server that was dropped is asked again; 0 for any other."""
        _, dropped = self._down.get(server.url, ("", -math.inf))
        return max(0.0, dropped + self.config.retry_s - self._loop.time())

    def _gave_up(self) -> EngineError:
        causes = "; ".join(f"{url} {said}" for url, (said, _) in self._down.items())
        return EngineError(
            f"no server of rollout.urls is usable after {self.config.max_retries} waits of {self.config.retry_s:g} s "
            f"(rollout.max_retries, rollout.retry_s): {causes}. {START}"
        )


def _mend(server: Server) -> str:
    return f"start {server.url} with a larger --max-model-len"


async def _together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all to their end; the first exception ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run until the first ends, then end the others; its exception is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
