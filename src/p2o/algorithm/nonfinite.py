"""If the loss or gradient is not finite again and again, the run stops and keeps the last batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from p2o.algorithm.training_set import TrainingSet


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient; :meth:`rows` is the last one's batch."""

    def __init__(self, steps: int, batch: TrainingSet, logprobs: Tensor) -> None:
        """``logprobs`` [M] are those of the batch's tokens under the policy, which the skipped steps left as it was."""
        super().__init__(
            f"the loss or gradient was not finite in {steps} optimizer steps in a row, all skipped: lower "
            "tuning.learning_rate, or continue with a larger policy.max_skipped_steps"
        )
        self.batch = batch
        self.logprobs = logprobs

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object per sample: prompt and completion as token ids, advantage, log-probs.

        JSON has finite numbers only: any other becomes a string, "nan", "inf" or "-inf".
        """
        batch = self.batch
        ends = accumulate((len(sample.completion) for sample in batch.samples), initial=0)
        for i, (start, end) in enumerate(pairwise(ends)):
            yield {
                "problem_id": batch.problem_ids[i],
                "templated": bool(batch.templated[i]),
                "advantage": _number(float(batch.advantages[i])),
                "prompt": batch.samples[i].prompt,
                "completion": batch.samples[i].completion,
                "logprobs": [_number(value) for value in self.logprobs[start:end].tolist()],
                "engine_logprobs": [_number(value) for value in batch.engine_logprobs[start:end].tolist()],
            }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
