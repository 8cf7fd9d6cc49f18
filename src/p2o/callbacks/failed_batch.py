"""``failed_batch.jsonl``: the batch that ended a run by numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from p2o.algorithm.nonfinite import NonFiniteError


def failed_batch(error: NonFiniteError) -> Iterator[dict[str, Any]]:
    """One object per sample: prompt and completion as token ids, advantage, log-probs.

    JSON knows finite numbers only: any other comes as a string, "nan", "inf" or "-inf".
    """
    batch = error.batch
    ends = accumulate((len(sample.completion) for sample in batch.samples), initial=0)
    for i, (start, end) in enumerate(pairwise(ends)):
        yield {
            "problem_id": batch.problem_ids[i],
            "templated": bool(batch.templated[i]),
            "advantage": _number(float(batch.advantages[i])),
            "prompt": batch.samples[i].prompt,
            "completion": batch.samples[i].completion,
            "logprobs": [_number(value) for value in error.logprobs[start:end].tolist()],
            "engine_logprobs": [_number(value) for value in batch.engine_logprobs[start:end].tolist()],
        }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
