"""What one value may be, for every key that its type leaves too free. Keys that a choice lacks are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

CHOICES = {
    "model.dtype": ("bfloat16", "float32"),
    "model.attn_implementation": ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
    "model.architecture": ("llama", "qwen3"),
    "reward.kind": ("math", "reasoning_gym", "exact", "function"),
    "rollout.importance": ("off", "token", "sequence"),
    "rollout.weight_transfer": ("auto", "folder"),
    "policy.loss": ("grpo", "dr_grpo", "dapo"),
    "policy.baseline": ("group", "template"),
    "policy.layout": ("padded", "packed", "shared_prefix"),
    "distillation.kind": ("off", "replace", "importance", "mask"),
    "distillation.mask_denominator": ("all", "kept"),
    "hard_set.rule": ("official", "plain_probe"),
    "gepa.variant": ("off", "teacher_ref", "self_ref"),
    "trainer.accelerator": ("cpu", "gpu"),
}

POSITIVE = (
    *("model.hidden_size", "model.layers", "model.heads", "model.kv_heads"),
    *("tuning.learning_rate", "tuning.r", "tuning.alpha"),
    *("data.train_size", "data.val_size"),
    *("reward.deadline_s", "reward.workers", "reward.memory_mb"),
    *("rollout.max_prompt_tokens", "rollout.max_new_tokens", "rollout.max_rows"),
    *("rollout.probe_tolerance", "rollout.max_model_len", "rollout.kv_cache_gib", "rollout.tensor_parallel_size"),
    *("rollout.start_s", "rollout.stall_s", "rollout.concurrency", "rollout.timeout_s"),
    *("policy.rollouts", "policy.questions_per_round", "policy.updates_per_round"),
    *("policy.micro_batch_tokens", "policy.head_chunk_tokens", "policy.max_grad_norm", "policy.max_skipped_steps"),
    *("hard_set.tau", "hard_set.min_size"),
    *("gepa.dev_size", "gepa.parents", "gepa.minibatch", "gepa.dev_samples", "gepa.max_template_tokens"),
    *("gepa.metric_calls", "gepa.candidates", "gepa.max_iterations", "gepa.max_failures"),
    *("reflector.max_new_tokens", "reflector.max_prompt_tokens", "reflector.timeout_s", "reflector.concurrency"),
    *("reflector.breaker_failures", "reflector.max_calls", "reflector.max_tokens"),
    *("validation.samples", "validation.every_rounds"),
    *("trainer.epochs", "trainer.rounds_per_epoch", "trainer.threads", "trainer.checkpoint_every"),
    *("budget.tokens", "budget.seconds", "budget.metric_calls"),
    # of an evaluation
    *("samples", "limit", "chunk", "resamples", "threads"),
)

NOT_NEGATIVE = (
    "data.seed",  # of numpy's generators, which take no other
    *("policy.clip_low", "policy.clip_high", "policy.weight_decay"),
    *("rollout.max_restarts", "rollout.retry_s", "rollout.max_retries"),
    *("gepa.temperature", "validation.temperature", "reflector.temperature"),
    *("reflector.max_retries", "reflector.backoff_s", "reflector.max_wait_s", "reflector.breaker_cooldown_s"),
    # of an evaluation
    "temperature",
)


def value_of(config: object, key: str) -> Any:
    """The value under a dotted key; None where it is not set, or where the configuration has no such key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def out_of_range(config: object) -> Iterator[str]:
    """A line for every value that is none of its choices or out of its range."""
    for key, choices in CHOICES.items():
        value = value_of(config, key)
        if key == "policy.loss" and "." in (value or ""):
            continue  # one's own, looked up when the run starts
        if value is not None and value not in choices:
            yield f"{key}={value} is none of {', '.join(choices)}"
    for key in POSITIVE:
        value = value_of(config, key)
        if value is not None and not value > 0:  # nan is not above anything
            yield f"{key}={value} must be above 0"
    for key in NOT_NEGATIVE:
        value = value_of(config, key)
        if value is not None and not value >= 0:
            yield f"{key}={value} must not be below 0"


def is_address(text: str) -> bool:
    """Whether a text is the address of an HTTP server."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, or of half a bracket
        return False


def server_problems(urls: list[str]) -> Iterator[str]:
    """What keeps ``rollout=vllm_server`` from asking anybody."""
    if not urls:
        yield "rollout=vllm_server needs rollout.urls=[http://HOST:PORT,...]: docs/rollout.md says how to start one"
    for url in urls:
        if not is_address(url):
            yield f"rollout.urls: {url} is no address, use http(s)://HOST:PORT"
