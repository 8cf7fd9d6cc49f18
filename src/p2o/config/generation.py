"""The node ``rollout``: how answers are sampled, and the engines that generate them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from p2o.config.key import key


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling, and the engine that generates."""

    kind: str = MISSING
    """Which option this is; the option sets it."""
    temperature: float = key(0.6, at_least=0)
    """Sampling temperature of the rollouts; training needs it above 0."""
    top_p: float = key(1.0, above=0, at_most=1)
    """Nucleus sampling: the smallest set of tokens with at least this probability; 1 = all."""
    max_prompt_tokens: int = key(512, above=0)
    """Longest prompt, template and chat markers included."""
    max_new_tokens: int = key(32, above=0)
    """Longest answer."""
    importance: str = key("off", choices=("off", "token", "sequence"))
    """Truncated importance sampling, which corrects for an engine whose log-probs differ from the trainer's; see
    p2o.algorithm.importance."""
    importance_cap: float = key(2.0, at_least=1)
    """Largest weight of that correction."""


@dataclass(kw_only=True)
class HfRollout(RolloutConfig):
    """The built-in decoding loop, on the trained weights themselves."""

    kind: str = "hf"
    max_rows: int = key(96, above=0, identity=False)
    """Sequences decoded at once."""


@dataclass(kw_only=True)
class ProbedRollout(RolloutConfig):
    """An engine with its own copy of the weights; after every sync, both sides score a probe text."""

    probe_tolerance: float = key(0.15, above=0)
    """Largest mean difference between the engine's and the trainer's log-probs of the probe text, in nats."""


@dataclass(kw_only=True)
class VllmRollout(ProbedRollout):
    """vLLM in a process beside the trainer."""

    kind: str = "vllm"
    max_rows: int = key(256, above=0, identity=False)
    """Sequences decoded at once."""
    max_model_len: int | None = key(None, above=0, identity=False)
    """Longest sequence in tokens, prompt included; null = the model's own limit."""
    gpu_memory_utilization: float = key(0.5, above=0, at_most=1, identity=False)
    """Share of a GPU's memory for weights and cache; the trainer needs the rest. Unused on a CPU."""
    kv_cache_gib: float | None = key(None, above=0, identity=False)
    """Size of the KV cache in GiB; null = what ``gpu_memory_utilization`` leaves on a GPU, 1 on a CPU."""
    tensor_parallel_size: int = key(1, above=0, identity=False)
    """GPUs that the model is split across."""
    enforce_eager: bool = key(False, identity=False)
    """No CUDA graphs: a faster start, slower decoding. Always so on a CPU."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's EngineArgs."""
    weight_transfer: str = key("auto", choices=("auto", "folder"), identity=False)
    """How whole weights (tuning=full) reach the engine. auto: if the trainer and the engine share a GPU, the engine
    reads them there; otherwise, as with folder, they are written to disk and loaded."""
    max_restarts: int = key(2, at_least=0, identity=False)
    """Restarts of the engine's process that one call may make."""
    start_s: float = key(900.0, above=0, identity=False)
    """Seconds that the process may take to start, or to load weights."""
    stall_s: float = key(300.0, above=0, identity=False)
    """Seconds of silence after which a generating process is replaced."""


@dataclass(kw_only=True)
class VllmServerRollout(ProbedRollout):
    """Running ``vllm serve`` processes, on this machine or others."""

    kind: str = "vllm_server"
    urls: list[str] = key([], identity=False)
    """Servers of the same model, e.g. http://localhost:8000; docs/rollout.md says how to start them."""
    api_key_env: str = key("VLLM_API_KEY", identity=False)
    """Name of the environment variable that holds the servers' key, if they need one."""
    adapter_dir: str | None = key(None, identity=False)
    """Folder of the adapters, under the same path on the servers; null = one below ``run_dir``."""
    concurrency: int = key(64, above=0, identity=False)
    """Requests in flight per server."""
    timeout_s: float = key(600.0, above=0, identity=False)
    """Wall-clock limit of one request, in seconds."""
    retry_s: float = key(10.0, at_least=0, identity=False)
    """Seconds before a failed server is asked again."""
    max_retries: int = key(30, at_least=0, identity=False)
    """Waits for each server in one call; the run stops when every server has used them up."""


@dataclass(kw_only=True)
class CustomRollout(RolloutConfig):
    """A custom engine."""

    kind: str = "custom"
    factory: str = MISSING
    """Dotted name of ``f(policy, config) -> RolloutEngine``."""
    params: dict[str, Any] = field(default_factory=dict)
    """Read by the factory from its ``config``."""
