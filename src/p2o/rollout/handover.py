"""One version of the policy's weights on its way into a vLLM process: an adapter, a model folder, or the weights where
they lie in the GPU's memory.

Each has a name of its own, since vLLM would take an adapter of a known name, or what it cached under it, for the old
one.
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from pickle import dumps
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from p2o.policy.model import Policy
from p2o.rollout.engine import StalePolicyError
from p2o.rollout.vllm_process import VllmProcess


class Weights(Protocol):
    """What a vLLM process can be asked to hold."""

    def load(self, process: VllmProcess, seconds: float) -> None:
        """Have the process take them over; no silence may outlast ``seconds``."""
        ...

    def discard(self) -> None:
        """No process will ask for them again."""
        ...


class Adapter:
    """A LoRA adapter in a folder; ``number`` must be one that no adapter had before."""

    def __init__(self, policy: Policy, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        policy.module.save_pretrained(str(folder))

    def load(self, process: VllmProcess, seconds: float) -> None:
        process.call("load_adapter", seconds, name=self._folder.name, number=self._number, folder=str(self._folder))

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class ModelFolder:
    """All weights, as a model that transformers and vLLM load; ``discard`` leaves one that is ``kept`` in its place."""

    def __init__(self, folder: Path, *, kept: bool = False) -> None:
        self.folder = folder
        self._kept = kept

    def load(self, process: VllmProcess, seconds: float) -> None:
        process.call("load_weights", seconds, folder=str(self.folder))

    def discard(self) -> None:
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)


class SharedWeights:
    """All weights where the trainer has them, read by the engine on the same GPU: vLLM's weight transfer "ipc".

    Nothing is written or copied on the trainer's side. So they are gone with its next update, and :meth:`load` refuses
    with :class:`StalePolicyError` after one.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._stamp = self._stamped()

    def load(self, process: VllmProcess, seconds: float) -> None:
        if self._stamped() != self._stamp:
            raise StalePolicyError("the policy was trained on since it was handed to the engine: call sync first")
        process.call("read_weights", seconds, update=self._update())
        if self._policy.device.type == "cuda":
            torch.cuda.ipc_collect()

    def discard(self) -> None:
        """Nothing to do: the trainer goes on with them."""

    def _stamped(self) -> tuple[int, ...]:
        """Changes with every change in place."""
        return tuple(p._version for p in self._policy.trainable.values())

    def _update(self) -> dict[str, Any]:
        """The fields of vLLM's ``IPCWeightTransferUpdateInfo``, which a line of JSON can carry.

        It is vLLM that wants handles pickled, and its process alone that reads them: ours writes, which runs nothing.
        """
        tensors = self._policy.state_dict()
        handles = [_handle(tensor) for tensor in tensors.values()]
        return {
            "names": list(tensors),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "ipc_handles_pickled": base64.b64encode(dumps(handles)).decode(),
        }


def _handle(tensor: Tensor) -> dict[str, tuple[Any, ...]]:
    """Where a tensor lies: the arguments that rebuild it in another process, by the name of its GPU."""
    _, arguments = reduce_tensor(tensor)
    return {str(torch.cuda.get_device_properties(tensor.device).uuid): arguments}
