"""One version of the policy's weights on its way into a vLLM server: an adapter, a model folder, or the weights where
they lie in the GPU's memory.

Each has a name of its own, since vLLM would take an adapter of a known name, or what it cached under it, for the old
one.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import dumps
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from p2o.policy.model import Policy
from p2o.rollout.engine import StalePolicyError


@dataclass(frozen=True)
class Weights:
    """What a server can be asked to hold."""

    name: str
    calls: Callable[[], Mapping[str, Mapping[str, Any]]]
    """Gives the paths of vLLM's endpoints that load them, and what each is sent."""
    whole: bool
    """Whether they replace all weights of the server; else they are an adapter."""
    folder: Path | None = None
    """Where they were written for the servers."""

    def discard(self) -> None:
        """No server will be asked to load them again."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def adapter(policy: Policy, folder: Path) -> Weights:
    """The policy's LoRA adapter, written to ``folder``."""
    policy.module.save_pretrained(str(folder))
    load = {"/v1/load_lora_adapter": {"lora_name": folder.name, "lora_path": str(folder)}}
    return Weights(folder.name, lambda: load, whole=False, folder=folder)


def saved_model(policy: Policy, folder: Path) -> Weights:
    """All weights of the policy, written to ``folder``."""
    policy.save(folder)
    return Weights(str(folder), model_folder(folder).calls, whole=True, folder=folder)


def model_folder(folder: Path) -> Weights:
    """All weights, as they lie in a folder that transformers and vLLM load and that stays where it is."""
    load = {"/collective_rpc": {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}}
    return Weights(str(folder), lambda: load, whole=True)


def shared_weights(policy: Policy, name: str) -> Weights:
    """All weights where the trainer has them, read by the engine on the same GPU: vLLM's weight transfer "ipc".

    Nothing is written or copied on the trainer's side. So they are gone with its next update, and ``calls`` refuses
    with :class:`StalePolicyError` after one.
    """

    def stamp() -> tuple[int, ...]:
        """Changes with every change in place."""
        return tuple(p._version for p in policy.trainable.values())

    handed = stamp()

    def calls() -> Mapping[str, Mapping[str, Any]]:
        if stamp() != handed:
            raise StalePolicyError("the policy was trained on since it was handed to the engine: call sync first")
        return {
            "/init_weight_transfer_engine": {"init_info": {"packed": False}},
            "/start_weight_update": {},
            "/update_weights": {"update_info": _places(policy.state_dict())},
            "/finish_weight_update": {},
        }

    return Weights(name, calls, whole=True)


def _places(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of vLLM's ``IPCWeightTransferUpdateInfo``, as JSON can carry them.

    It is vLLM that wants handles pickled, and its process alone that reads them: ours writes, which runs nothing.
    """
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
