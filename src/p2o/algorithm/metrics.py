"""An update's metrics: summed on the device while it runs, read once per optimizer step.

Every metric is named once, where it is computed; a custom loss adds its metrics by returning them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from p2o.ranks import Ranks


class TokenSums:
    """Sums of per-token numbers, each with its token count, in float64 on the tokens' device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], over_N: Tensor) -> None:
        """Add ``values`` (name → [N]) at the tokens for which ``over_N`` (boolean, [N]) is True."""
        count = over_N.sum().double()
        for name, values_N in values.items():
            total = torch.where(over_N, values_N, 0).double().sum()
            pair = torch.stack((total.detach(), count))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def largest(self, name: str, values_N: Tensor, over_N: Tensor) -> None:
        """Keep the largest of ``values_N``, numbers of at least 0."""
        found = torch.cat((torch.where(over_N, values_N, 0), values_N.new_zeros(1))).max()
        self._largest[name] = found.maximum(self._largest[name]) if name in self._largest else found

    def read(self, ranks: Ranks) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
        """Name → (sum, tokens), and name → largest value, over all ranks.

        The only place in a step that waits for the device.
        """
        names = sorted(self._sums)
        if not names:
            return {}, {}
        table = torch.stack([self._sums[name] for name in names]).cpu()
        ranks.sum([table])
        sums = {name: (total, count) for name, (total, count) in zip(names, table.tolist(), strict=True)}
        largest: dict[str, float] = {}
        for own in ranks.gather(lambda: {name: float(value) for name, value in self._largest.items()}):
            largest |= {name: max(value, largest.get(name, 0.0)) for name, value in own.items()}
        return sums, largest


class UpdateMetrics:
    """An update's metrics, from those of its optimizer steps. ``forward_tokens`` and the progress are of this rank."""

    def __init__(self, total_tokens: int, skipped_in_a_row: int = 0) -> None:
        self.total_tokens = total_tokens
        self.done_tokens = 0
        """Completion tokens that went through the loss, out of ``total_tokens``."""
        self.skipped_in_a_row = skipped_in_a_row
        """Steps skipped since the last one that was taken, earlier updates included."""
        self._counts: dict[str, float] = {"forward_tokens": 0}
        self._sums: dict[str, tuple[float, float]] = {}
        self._largest: dict[str, float] = {}
        self._per_step: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        self._skipped = 0

    def count(self, **counts: float) -> None:
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0) + value

    def micro_batch(self, rows: int, targets: int, progress: Callable[[int, int], None] | None) -> None:
        """Record a micro-batch of ``rows`` tokens (prompts and padding too), ``targets`` of them completion tokens."""
        self._counts["forward_tokens"] += rows
        self.done_tokens += targets
        if progress is not None:
            progress(self.done_tokens, self.total_tokens)

    def tokens(self, sums: Mapping[str, tuple[float, float]], largest: Mapping[str, float]) -> None:
        """Add what :meth:`TokenSums.read` returned."""
        for name, (total, count) in sums.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + total, before[1] + count)
        for name, value in largest.items():
            self._largest[name] = max(self._largest.get(name, 0.0), value)

    def taken(self, loss: float, grad_norm: float) -> None:
        """Record a step taken: its loss, which does not measure progress, and its gradient norm before clipping."""
        self._per_step["loss"].append(loss)
        self._per_step["grad_norm"].append(grad_norm)
        self.skipped_in_a_row = 0

    def skipped(self) -> None:
        """Record a step skipped because its loss or gradient was not finite."""
        self._skipped += 1
        self.skipped_in_a_row += 1

    def values(self) -> dict[str, float]:
        """Name → value: means over tokens, means over the steps that were taken, largest values and counts."""
        return {
            **{name: _mean(*pair) for name, pair in self._sums.items()},
            **{name: _mean(sum(values), len(values)) for name, values in self._per_step.items()},
            **self._largest,
            **self._counts,
            "steps": len(self._per_step["loss"]),
            "skipped": self._skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }


def _mean(total: float, count: float) -> float:
    return total / count if count else 0.0
