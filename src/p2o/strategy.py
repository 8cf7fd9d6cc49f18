"""Lightning's side of several processes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from p2o.ranks import Ranks
from p2o.stop import Stop


class RanksStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, also where nothing is sharded: optimization is manual, and DDP's wrapper reduces
    at every backward pass, where ranks with unequal numbers of micro-batches would wait for each other for ever.

    What Lightning tells the other ranks goes through the run's own :class:`~p2o.ranks.Ranks`, where a stop can
    interrupt it.
    """

    def __init__(self, ranks: Ranks, stop: Stop) -> None:
        super().__init__(data_parallel_size=ranks.size, tensor_parallel_size=1)
        self._ranks = ranks
        self._stop = stop

    def barrier(self, name: str | None = None) -> None:
        # The first one comes behind Lightning's handler of SIGTERM, which would wait for all ranks inside the handler.
        self._stop.listen()
        self._ranks.gather(lambda: None)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self._ranks.gather(lambda: obj)[src]

    def reduce(self, tensor: Tensor | Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Of tensors; ``reduce_op`` is sum, or mean."""
        if not isinstance(tensor, Tensor):
            return tensor
        values = torch.tensor(self._ranks.gather(lambda: tensor.tolist()), dtype=torch.float64)
        result = values.sum(0) if str(reduce_op).lower().endswith("sum") else values.mean(0)
        return result.to(tensor)
