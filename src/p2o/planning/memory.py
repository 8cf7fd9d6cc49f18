"""Memory and disk by part. The parts that exist at the same time are added up; every figure is an estimate from above
of what p2o itself allocates, and leaves out what libraries, drivers and the allocator's gaps take."""

from __future__ import annotations

from dataclasses import dataclass

from p2o.config.schema import Config, FullTuning, HfRollout, VllmRollout
from p2o.planning.counts import Counts, Questions
from p2o.planning.sizes import ModelSize
from p2o.policy.head import REFERENCE_VOCABULARY, block_rows
from p2o.policy.model import DTYPES

ALWAYS, ROLLOUT, UPDATE, CHECKPOINT = "always", "rollout", "update", "checkpoint"

FLOAT32 = 4
BYTES_PER_TOKEN = 4
"""Of text on disk: what a token of English is in UTF-8."""
CHECKPOINTS = 4
"""``last``, ``previous``, ``best`` and the one that is being written."""


@dataclass(frozen=True)
class Part:
    """Bytes on a device (``cpu`` | ``gpu``) and when they are taken: always | rollout | update | checkpoint."""

    name: str
    device: str
    when: str
    bytes: int


def peak(parts: list[Part], device: str) -> int:
    """The most that is taken of a device at one time."""
    taken = {ALWAYS: 0}
    for part in parts:
        if part.device == device:
            taken[part.when] = taken.get(part.when, 0) + part.bytes
    return taken.pop(ALWAYS) + max(taken.values(), default=0)


def memory(config: Config, size: ModelSize, questions: Questions, *, device: str, capacity: int | None) -> list[Part]:
    """The parts of a run whose model is trained on ``device``, which has ``capacity`` bytes where that is known."""
    element = DTYPES[config.model.dtype].itemsize
    parts = [
        Part("weights", device, ALWAYS, element * size.frozen + FLOAT32 * size.trainable),
        Part("AdamW's two moments", device, ALWAYS, 2 * FLOAT32 * size.trainable),
        Part("gradients", device, UPDATE, FLOAT32 * size.trainable),
        Part("activations of a micro-batch", device, UPDATE, size.kept_per_token * micro_batch(config, questions)),
        Part("output layer's chunks", device, UPDATE, _head(config, size, device, element)),
    ]
    if isinstance(config.tuning, FullTuning) and element < FLOAT32:
        parts.append(Part(f"weights in {config.model.dtype}", device, UPDATE, element * size.parameters))
    parts += _engine(config, size, questions, device, element, capacity)
    if device != "cpu":
        parts.append(Part("checkpoint on its way to the disk", "cpu", CHECKPOINT, FLOAT32 * size.trainable))
    graders = config.reward.workers * config.reward.memory_mb * 2**20
    parts.append(Part(f"{config.reward.workers} grader(s), at their limit", "cpu", ALWAYS, graders))
    return parts


def sequence(config: Config, questions: Questions) -> int:
    """Tokens of the longest sequence that the policy may see."""
    templated = questions.longest_prompt + (config.gepa.max_template_tokens if config.gepa.variant != "off" else 0)
    return min(templated, config.rollout.max_prompt_tokens) + config.rollout.max_new_tokens


def micro_batch(config: Config, questions: Questions) -> int:
    """Tokens of the largest micro-batch: its budget, a single sequence where that is longer, never more than a step."""
    longest = sequence(config, questions)
    step = -(-config.policy.questions_per_round // config.policy.updates_per_round) * config.policy.rollouts * longest
    return min(max(config.policy.micro_batch_tokens, longest), step)


def _head(config: Config, size: ModelSize, device: str, element: int) -> int:
    """A chunk's logits, and a block's in float32 with their probabilities.

    Where the weight is trained, its copy for the arithmetic and its gradient too.
    """
    rows = max(1, config.policy.head_chunk_tokens * REFERENCE_VOCABULARY // max(size.vocabulary, REFERENCE_VOCABULARY))
    logits = (element * rows + 2 * FLOAT32 * min(rows, block_rows(device))) * size.vocabulary
    weight = size.head * (element + FLOAT32) if isinstance(config.tuning, FullTuning) else 0
    return logits + weight


def _engine(
    config: Config, size: ModelSize, questions: Questions, device: str, element: int, capacity: int | None
) -> list[Part]:
    rollout, copy = config.rollout, element * size.parameters
    parts = []
    if isinstance(rollout, HfRollout):
        shared = device != "cpu"  # there frozen weights are read where they are
        if config.gepa.variant == "self_ref" and isinstance(config.tuning, FullTuning):
            name, times = ("the reference model", 1) if shared else ("the reference model, twice", 2)
            parts.append(Part(name, device, ALWAYS, times * copy))
        copied = element * size.trainable if shared else copy
        parts.append(Part("the engine's copy of the weights", device, ROLLOUT, copied))
        rows = min(rollout.max_rows, config.policy.questions_per_round * config.policy.rollouts)
        cache = rows * sequence(config, questions) * size.cache_per_token
        parts.append(Part("keys and values", device, ROLLOUT, cache))
    elif isinstance(rollout, VllmRollout) and device == "cpu":
        parts.append(Part("vLLM: weights", device, ALWAYS, copy))
        parts.append(Part("vLLM: keys and values", device, ALWAYS, int((rollout.kv_cache_gib or 1) * 2**30)))
    elif isinstance(rollout, VllmRollout):
        one_sequence = sequence(config, questions) * size.cache_per_token
        share = int(rollout.gpu_memory_utilization * capacity) if capacity else copy + one_sequence
        parts.append(Part("vLLM" if capacity else "vLLM, at the least", device, ROLLOUT, share))
        parts.append(Part("vLLM's weights while it sleeps", "cpu", UPDATE, copy))
    return parts


def disk(config: Config, size: ModelSize, counts: Counts) -> list[Part]:
    """What the run's folder may grow to."""
    element = DTYPES[config.model.dtype].itemsize
    state = 3 * FLOAT32 * size.trainable
    model = element * size.parameters if isinstance(config.tuning, FullTuning) else FLOAT32 * size.trainable
    policy, evolution = counts.policy, counts.evolution
    tokens = policy.prompt_tokens + policy.generated_tokens + evolution.generated_tokens
    return [
        Part(f"checkpoints, {CHECKPOINTS} at the most", "disk", ALWAYS, CHECKPOINTS * state),
        Part("model/", "disk", ALWAYS, model),
        Part("rollouts and journals, at the most", "disk", ALWAYS, BYTES_PER_TOKEN * tokens),
    ]
