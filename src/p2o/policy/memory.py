"""The memory of a micro-batch: when it runs out, the token budget is halved and the step repeated.

A step's gradient does not depend on how its samples are split (:mod:`p2o.algorithm.policy_step`), so a repeated step
gives what an undisturbed one would have given, up to rounding. The lower budget stays: what did not fit once will not
fit later. Each rank repeats its own steps; ranks meet only after the last micro-batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from p2o.errors import RunError
from p2o.policy.layout import MicroBatch

log = logging.getLogger(__name__)

T = TypeVar("T")

CPU_MESSAGES = ("can't allocate memory", "bad_alloc")
"""The CPU's allocators fail with a plain RuntimeError with such a text."""


KERNELS = 256
"""Shapes of products whose kernels are kept. The layers of a model share a hundred or so, while every micro-batch and
every step of a shrinking batch brings new ones."""


class OutOfMemoryError(RunError):
    """A single sequence does not fit into memory; the message says what to lower."""


class DoesNotFitError(RuntimeError):
    """Memory ran out in a micro-batch of ``tokens`` tokens (padding included) and ``sequences`` sequences."""

    def __init__(self, tokens: int, sequences: int) -> None:
        super().__init__(f"a micro-batch of {tokens} tokens and {sequences} sequences does not fit into memory")
        self.tokens = tokens
        self.sequences = sequences


@contextmanager
def must_fit(batch: MicroBatch) -> Iterator[None]:
    """Around the passes of one micro-batch: raises :class:`DoesNotFitError` if memory runs out in them."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise DoesNotFitError(batch.input_ids.numel(), len(batch.samples.unique())) from error


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in CPU_MESSAGES)


def keep_fewer_kernels() -> None:
    """Let oneDNN, and torch's cache before it, hold :data:`KERNELS` kernels instead of 1,024 each.

    Call it before the first product on a CPU, when the variables are read; values already in the environment stay. A
    kernel is 0.6 MiB, so those of shapes that never recur took one of the default job's 3.3 GiB.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


class TokenBudget:
    """Tokens that a micro-batch may hold, fewer after every shortage."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def fit(self, attempt: Callable[[int], T]) -> T:
        """What ``attempt(tokens)`` returns, called again with fewer tokens whenever a micro-batch does not fit.

        Raises :class:`OutOfMemoryError` if the micro-batch was a single sequence.
        """
        while True:
            try:
                return attempt(self.tokens)
            except DoesNotFitError as failure:
                if failure.sequences == 1:
                    raise OutOfMemoryError(
                        f"memory ran out in the update of a single sequence of {failure.tokens} tokens: lower "
                        "rollout.max_new_tokens or policy.head_chunk_tokens, or use tuning=lora or a smaller model"
                    ) from failure
                # Half of what failed: the budget itself may be far above the step's tokens.
                fewer = min(self.tokens, failure.tokens) // 2
                # As text: a log handler that keeps the exception would keep its frames, and all that they hold.
                log.warning("%s: the step is repeated with policy.micro_batch_tokens=%d", str(failure), fewer)
            # Out here the failed attempt's frames are gone, and with them their tensors.
            self.tokens = fewer
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
