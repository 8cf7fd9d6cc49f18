"""Memory and disk by part, each an upper estimate of what p2o itself allocates.

Parts that exist at the same time are added up. What libraries, drivers and gaps in the allocator take is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2o.config.schema import Config, FullTuning, HfRollout, VllmRollout
from p2o.planning.counts import Counts, Questions
from p2o.planning.sizes import ModelSize
from p2o.policy.head import REFERENCE_VOCABULARY, block_rows
from p2o.policy.model import DTYPES
from p2o.types import Phase

ALWAYS, ROLLOUT, UPDATE, CHECKPOINT = "always", "rollout", "update", "checkpoint"

FLOAT32 = 4
BYTES_PER_TOKEN = 4
"""Of text on disk: a token of English in UTF-8."""
CHECKPOINTS = 4
"""``last``, ``previous``, ``best`` and the one that is being written."""


@dataclass(frozen=True)
class Part:
    """Bytes on a device (``cpu`` | ``gpu`` | ``disk``) and when they are taken: always | rollout | update |
    checkpoint."""

    name: str
    device: str
    when: str
    bytes: int


def peak(parts: Sequence[Part], device: str) -> int:
    """The most bytes of a device that are taken at one time."""
    taken = Counter[str]()
    for part in parts:
        if part.device == device:
            taken[part.when] += part.bytes
    return taken.pop(ALWAYS, 0) + max(taken.values(), default=0)


def memory(config: Config, size: ModelSize, questions: Questions, capacity: int | None) -> Iterator[Part]:
    """The parts of a run that trains on devices with ``capacity`` bytes each (None = unknown), of one process."""
    device, element = config.trainer.accelerator, DTYPES[config.model.dtype].itemsize
    copy, float32 = element * size.parameters, FLOAT32 * size.trainable
    full = isinstance(config.tuning, FullTuning)
    rows = max(1, config.policy.head_chunk_tokens * REFERENCE_VOCABULARY // max(size.vocabulary, REFERENCE_VOCABULARY))
    head = (element * rows + 2 * FLOAT32 * min(rows, block_rows(device))) * size.vocabulary  # logits, probabilities
    if full:  # the weight's copy for the arithmetic, and its gradient
        head += size.head * (element + FLOAT32)
    sharded = config.trainer.strategy == "fsdp2"
    parts = processes(config) if sharded else 1
    yield Part("weights", device, ALWAYS, (element * size.frozen + float32) // parts)
    yield Part("AdamW's two moments", device, ALWAYS, 2 * float32 // parts)
    yield Part("gradients", device, UPDATE, float32 // parts)
    yield Part("activations of a micro-batch", device, UPDATE, size.kept_per_token * _micro_batch(config, questions))
    yield Part("output layer's chunks", device, UPDATE, head)
    if full and element < FLOAT32:
        yield Part(f"weights in {config.model.dtype}", device, UPDATE, copy)
    rollout, cached = config.rollout, sequence(config, questions) * size.cache_per_token
    if isinstance(rollout, HfRollout):
        shared = device != "cpu" and not sharded  # there the engine reads frozen weights in place
        if config.gepa.variant == "self_ref" and full:
            yield Part("the reference model" + ", twice" * (not shared), device, ALWAYS, copy * (2 - shared))
        yield Part("the engine's copy of the weights", device, ROLLOUT, element * size.trainable if shared else copy)
        at_once = min(rollout.max_rows, config.policy.questions_per_round * config.policy.rollouts)
        yield Part("keys and values", device, ROLLOUT, at_once * cached)
    elif isinstance(rollout, VllmRollout) and device == "cpu":
        yield Part("vLLM: weights", device, ALWAYS, copy)
        yield Part("vLLM: keys and values", device, ALWAYS, int((rollout.kv_cache_gib or 1) * 2**30))
    elif isinstance(rollout, VllmRollout):
        share = int(rollout.gpu_memory_utilization * capacity) if capacity else copy + cached
        yield Part("vLLM" if capacity else "vLLM, at least", device, ROLLOUT, share)
        yield Part("vLLM's weights while it sleeps", "cpu", UPDATE, copy)
    if sharded:
        yield Part("checkpoint, gathered", "cpu", CHECKPOINT, 3 * float32)
    elif device != "cpu":
        yield Part("checkpoint on its way to the disk", "cpu", CHECKPOINT, float32)
    graders = config.reward.workers * config.reward.memory_mb * 2**20
    yield Part(f"{config.reward.workers} grader(s), at their limit", "cpu", ALWAYS, graders)


def disk(config: Config, size: ModelSize, counts: Counts) -> Iterator[Part]:
    """What the run's folder may grow to."""
    full = isinstance(config.tuning, FullTuning)
    model = DTYPES[config.model.dtype].itemsize * size.parameters if full else FLOAT32 * size.trainable
    policy, evolution = counts.work[Phase.POLICY], counts.work[Phase.EVOLUTION]
    tokens = policy.prompt_tokens + policy.generated_tokens + evolution.generated_tokens
    yield Part(f"checkpoints, at most {CHECKPOINTS}", "disk", ALWAYS, CHECKPOINTS * 3 * FLOAT32 * size.trainable)
    yield Part("model/", "disk", ALWAYS, model)
    yield Part("rollouts and journals, at most", "disk", ALWAYS, BYTES_PER_TOKEN * tokens)


def processes(config: Config) -> int:
    """Ranks of the run; ``trainer.devices=auto`` counts as one per machine."""
    devices = config.trainer.devices
    return config.trainer.nodes * (devices if isinstance(devices, int) else 1)


def sequence(config: Config, questions: Questions) -> int:
    """Tokens of the longest sequence that the policy may see."""
    templated = questions.longest_prompt + (config.gepa.max_template_tokens if config.gepa.variant != "off" else 0)
    return min(templated, config.rollout.max_prompt_tokens) + config.rollout.max_new_tokens


def _micro_batch(config: Config, questions: Questions) -> int:
    """Tokens of the largest micro-batch: its budget, or one sequence if that is longer, but at most a whole step."""
    longest = sequence(config, questions)
    step = -(-config.policy.questions_per_round // config.policy.updates_per_round) * config.policy.rollouts * longest
    return min(max(config.policy.micro_batch_tokens, longest), step)
