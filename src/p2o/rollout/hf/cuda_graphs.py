"""Decoding steps as CUDA graphs.

A step of a few rows is hundreds of small kernels, which a GPU computes in a fraction of the time that Python takes to
launch them. A graph is launched at once, but its shapes and addresses are fixed. So rows are padded to a few sizes, and
a graph serves as long as the cache that it was recorded on keeps its capacity.

Shapes: R rows, P padded rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From last tokens, positions and uniform numbers, [R] each, to the next tokens and their log-probs, [R] each."""

SHRINK = 4
"""Rows are padded to the largest number of rows, divided by a power of this: recording costs as much as several plain
steps."""


class GraphedStep:
    """``step`` on a GPU, recorded for each number of rows that it is called with repeatedly; at most ``rows``.

    The first call of a size computes as usual, which also sets up what may not be set up while recording; the second
    records. A model that cannot be recorded, since what it does depends on values, computes as usual. Padding rows are
    at position 0 of the cache's rows after R, which must be free.
    """

    def __init__(self, step: Step, rows: int, device: torch.device) -> None:
        self._step = step
        self._sizes = [rows]
        while self._sizes[-1] > 1:
            self._sizes.append(-(-self._sizes[-1] // SHRINK))
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[int, _Graph | None] = {}
        self._capacity = 0
        self._records = True

    def __call__(self, last_R: Tensor, positions_R: Tensor, uniforms_R: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """The next tokens and their log-probs; ``capacity`` is that of the cache, whose growth drops older graphs."""
        if capacity != self._capacity:
            self._graphs.clear()
            self._capacity = capacity
        rows = len(last_R)
        size = min(s for s in self._sizes if s >= rows)
        inputs = tuple(
            torch.cat((x, x.new_zeros(size - rows))).to(self._device) for x in (last_R, positions_R, uniforms_R)
        )
        if size in self._graphs and self._graphs[size] is None and self._records:
            self._graphs[size] = self._record(inputs)
        graph = self._graphs.setdefault(size, None)
        tokens_P, logprobs_P = self._step(*inputs) if graph is None else graph.launch(inputs)
        return tokens_P[:rows], logprobs_P[:rows]

    def _record(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        try:
            return _Graph(self._step, inputs, self._stream)
        except RuntimeError as error:
            self._records = False
            log.warning("decoding continues without CUDA graphs, since this model cannot be recorded: %s", error)
            return None


class _Graph:
    """A step on ``inputs``, recorded and not computed."""

    def __init__(self, step: Step, inputs: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
        self._inputs = inputs
        self._graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._graph.capture_begin()
            try:
                self._outputs = step(*inputs)
            finally:
                self._graph.capture_end()

    def launch(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What it computes from ``inputs``, in tensors that the next launch overwrites."""
        for recorded, x in zip(self._inputs, inputs, strict=True):
            recorded.copy_(x)
        self._graph.replay()
        return self._outputs
