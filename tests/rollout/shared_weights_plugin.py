"""Stands for the GPU that a trainer and vLLM share: a handle names a file instead of a place in the GPU's memory.

``handles_in`` is the trainer's side. ``register`` is vLLM's, which finds it by an entry point as it finds any plugin;
of its own code only what needs CUDA is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GPU = "GPU-of-the-test"


def handles_in(folder: Path) -> Callable[[Tensor], dict[str, tuple[Any, ...]]]:
    def handle(tensor: Tensor) -> dict[str, tuple[Any, ...]]:
        file = folder / f"{tensor.data_ptr()}.pt"
        torch.save(tensor, file)
        return {GPU: (str(file),)}

    return handle


def register() -> None:
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

    def update_weights(self: IPCWeightTransferEngine, update_info: dict[str, Any]) -> None:
        update = self.parse_update_info(update_info)
        assert isinstance(update.ipc_handles, list)
        tensors = [torch.load(handle[GPU][0]) for handle in update.ipc_handles]
        assert [list(tensor.shape) for tensor in tensors] == update.shapes
        assert [f"torch.{name}" for name in update.dtype_names] == [str(tensor.dtype) for tensor in tensors]
        self.model.load_weights(zip(update.names, tensors, strict=True))

    IPCWeightTransferEngine.update_weights = update_weights  # type: ignore[method-assign]
