"""When loss or gradient are not finite again and again: the run stops, and the batch that did it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from p2o.algorithm.training_set import TrainingSet


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; :meth:`rows` is the last one's batch."""

    def __init__(self, steps: int, batch: TrainingSet, logprobs: Tensor) -> None:
        """``logprobs`` [M] are those of the batch's tokens under the policy, which the skipped steps left as it was."""
        super().__init__(
            f"loss or gradient were not finite in {steps} optimizer steps in a row, none of which was taken: lower "
            "tuning.learning_rate, or go on with a larger policy.max_skipped_steps"
        )
        self.batch = batch
        self.logprobs = logprobs

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object per sample: prompt and completion as token ids, advantage, log-probs.

        JSON knows finite numbers only: any other comes as a string, "nan", "inf" or "-inf".
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
