"""The nodes of the method: the policy update, context distillation, the hard set, templates and who writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from p2o.config.key import DOTTED_NAME, key


@dataclass(kw_only=True)
class PolicyConfig:
    """The policy update: the loss, the group, and how rollouts are split into micro-batches."""

    loss: str = key("grpo", choices=("grpo", "dr_grpo", "dapo", DOTTED_NAME))
    """A preset, or the dotted name of a custom loss; see p2o.algorithm.losses."""
    rollouts: int = key(6, at_least=2)
    """K, the size of a group. A group of one has no advantage."""
    questions_per_round: int = key(8, above=0)
    """Questions answered before each policy update."""
    updates_per_round: int = key(1, above=0)
    """Optimizer steps per round of rollouts. More than 1 is off-policy and clipped."""
    baseline: str = key("group", choices=("group", "template"))
    """What rewards are compared with if templates differ within a group: the whole group, or the same template."""
    clip_low: float = key(0.2, at_least=0)
    """The probability ratio is clipped at 1 minus this."""
    clip_high: float = key(0.2, at_least=0)
    """The probability ratio is clipped at 1 plus this."""
    dual_clip: float = key(3.0, at_least=0)
    """Bounds the loss of tokens with a negative advantage, in multiples of the advantage: at least 1, or 0 for none."""
    weight_decay: float = key(0.0, at_least=0)
    """AdamW's weight decay."""
    betas: list[float] = key([0.9, 0.999], at_least=0, below=1)
    """AdamW's two betas."""
    warmup_fraction: float = key(0.05, at_least=0, below=1)
    """Share of the optimizer steps in which the learning rate rises from zero."""
    max_grad_norm: float = key(1.0, above=0)
    """The gradient is scaled down to this norm."""
    max_skipped_steps: int = key(3, above=0, identity=False)
    """Stop after skipping this many steps in a row whose loss or gradient was not finite."""
    layout: str = key("shared_prefix", choices=("padded", "packed", "shared_prefix"))
    """How rollouts are laid out in a micro-batch; see p2o.policy.layout."""
    micro_batch_tokens: int = key(2048, above=0)
    """Tokens per micro-batch. It sets memory and speed; the gradient changes by rounding only."""
    head_chunk_tokens: int = key(256, above=0)
    """Tokens whose logits are in memory at once; fewer if the vocabulary is larger than 65,536."""
    fused_lora: bool = True
    """Add an adapter's second product to the layer's output directly, without a separate pass."""


@dataclass(kw_only=True)
class DistillationConfig:
    """Context distillation: how a templated rollout teaches the plain question."""

    kind: str = key("mask", choices=("off", "replace", "importance", "mask"))
    """off: train on the templated question. replace: on the plain one (equation 6). importance: weighted by the ratio
    to the templated distribution. mask: replace, without the tokens whose ratio is out of bounds (equation 8)."""
    low: float = key(0.01, above=0, below=1)
    """Lower bound of a token's probability ratio, plain question over templated question."""
    high: float = key(10.0, above=1)
    """Upper bound of that ratio."""
    mask_denominator: str = key("kept", choices=("all", "kept"))
    """Tokens that the loss's denominator counts: all, or those that the mask keeps."""
    positive_only: bool = False
    """Drop templated rollouts whose advantage is negative."""


@dataclass(kw_only=True)
class HardSetConfig:
    """Which questions count as hard; templates are evolved for them."""

    rule: str = key("plain_probe", choices=("official", "plain_probe"))
    """official: fewer than tau of K successes, whatever the prompt. plain_probe: the plain rollouts decide."""
    tau: int = key(2, above=0)
    """Successes in a group at which its question is not hard."""
    min_size: int = key(4, above=0)
    """After a smaller hard set the next epoch is plain GRPO."""
    plain_rollouts: int = key(1, at_least=0)
    """Rollouts of a templated group that stay plain."""


@dataclass(kw_only=True)
class GepaConfig:
    """The evolution of templates."""

    variant: str = key(MISSING, choices=("off", "teacher_ref", "self_ref"))
    """Who reflects: nobody (plain GRPO), the reflector that ``reflector`` names, or the initial policy."""
    dev_size: int = key(16, above=0)
    """Dev questions, at most half of the hard set."""
    parents: int = key(8, above=0)
    """W, proposals per iteration."""
    minibatch: int = key(3, above=0)
    """B, questions per proposal."""
    metric_calls: int | None = key(240, above=0)
    """Budget of template evaluations in one evolution; null = from ``candidates`` by the published rule."""
    candidates: int = key(6, above=0)
    """c of the published budget: light 6, medium 12, heavy 18, heavy_4 72."""
    max_iterations: int = key(100, above=0)
    """Cap on iterations, accepted or not, so that an unhelpful reflector cannot loop forever."""
    max_failures: int = key(5, above=0)
    """Stop after this many iterations in a row without a usable proposal."""
    dev_samples: int = key(1, above=0)
    """Answers per dev question and template."""
    temperature: float = key(0.0, at_least=0)
    """Temperature of template evaluation; 0 = greedy, as published."""
    solve_threshold: float = key(0.5, above=0, at_most=1)
    """Mean score over ``dev_samples`` at which a dev question counts as solved."""
    warm_start: bool = False
    """The last epoch's front joins the next epoch's pool."""
    leak_filter: bool = True
    """Refuse templates that contain a gold answer of the hard set."""
    max_template_tokens: int = key(128, above=0)
    """Longest template; questions leave room for it."""
    same_template: bool = False
    """One template for all rollouts of a group."""


@dataclass(kw_only=True)
class ReflectorConfig:
    """Who writes the templates."""

    kind: str = MISSING
    """Which option this is; the option sets it."""
    temperature: float = key(0.6, at_least=0)
    """Temperature of the reflector's answers."""
    max_new_tokens: int = key(256, above=0)
    """Longest answer of the reflector."""
    max_prompt_tokens: int = key(2048, above=0)
    """Longest meta prompt; to fit, responses in it are shortened, then examples are left out."""


@dataclass(kw_only=True)
class StrategiesReflector(ReflectorConfig):
    """The built-in teacher: composes instructions from a library of strategies, without a network."""

    kind: str = "strategies"
    strategies: str | None = None
    """YAML file of strategies; null = the built-in ones."""


@dataclass(kw_only=True)
class ReferenceReflector(ReflectorConfig):
    """The initial policy."""

    kind: str = "reference"


@dataclass(kw_only=True)
class CustomReflector(ReflectorConfig):
    """A custom reflector."""

    kind: str = "custom"
    factory: str = MISSING
    """Dotted name of ``f(config, ledger) -> Reflector``."""
    params: dict[str, Any] = field(default_factory=dict)
    """Read by the factory from its ``config``."""


@dataclass(kw_only=True)
class OpenAIReflector(ReflectorConfig):
    """A language model behind an OpenAI-compatible endpoint."""

    kind: str = "openai"
    max_new_tokens: int = key(2048, above=0)
    max_prompt_tokens: int = key(16384, above=0)
    base_url: str | None = None
    """The endpoint's address; null = OPENAI_BASE_URL, or the client's default."""
    model: str = MISSING
    """The model's name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself never enters the configuration."""
    timeout_s: float = key(120.0, above=0)
    """Wall-clock seconds for one call, from the connection to the last byte."""
    max_retries: int = key(3, at_least=0)
    """Retries of one call."""
    backoff_s: float = key(1.0, at_least=0)
    """Seconds before the first retry; doubled for every further one."""
    max_wait_s: float = key(60.0, at_least=0)
    """Longest wait before a retry, in seconds. If the server asks for more (Retry-After), the call fails."""
    breaker_failures: int = key(8, above=0)
    """Failed calls in a row after which the endpoint is left alone for ``breaker_cooldown_s``."""
    breaker_cooldown_s: float = key(60.0, at_least=0)
    """Seconds for which an endpoint that keeps failing is left alone."""
    concurrency: int = key(8, above=0)
    """Calls in flight at once."""
    max_calls: int | None = key(None, above=0)
    """Calls, retries included, that a run may make; null = no limit."""
    max_tokens: int | None = key(None, above=0)
    """Prompt and completion tokens that a run may spend; null = no limit."""
