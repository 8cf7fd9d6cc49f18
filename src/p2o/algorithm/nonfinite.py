"""If the loss or gradient is not finite again and again, the run stops and keeps the last batch."""

from __future__ import annotations

from torch import Tensor

from p2o.algorithm.training_set import TrainingSet
from p2o.errors import RunError


class NonFiniteError(RunError):
    """Too many steps in a row had a non-finite loss or gradient; ``batch`` is the last one's."""

    def __init__(self, steps: int, batch: TrainingSet, logprobs: Tensor) -> None:
        """``logprobs`` [M] are those of the batch's tokens under the policy, which the skipped steps left as it was."""
        super().__init__(
            f"the loss or gradient was not finite in {steps} optimizer steps in a row, all skipped: lower "
            "tuning.learning_rate, or continue with a larger policy.max_skipped_steps"
        )
        self.batch = batch
        self.logprobs = logprobs
