"""A policy whose weights, gradients and optimizer state are split over the ranks: FSDP2, ``trainer.strategy=fsdp2``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from p2o.policy.model import Policy

T = TypeVar("T")


class Root(nn.Module):
    """What FSDP takes for the model. It gathers weights around a module's forward pass only, and the log-probs read the
    head's weight behind the backbone's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def shard(policy: Policy, device: str) -> Root:
    """Split the policy's weights over all ranks, on cpu or cuda: each decoder layer by itself, then what is left."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    root = Root(policy.module)
    layers = set(policy.causal_lm._no_split_modules or ())
    for module in policy.causal_lm.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(root, mesh=mesh)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Sums, which a step divides once by what all ranks have counted. FSDP would average.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be split over the ranks, in one piece. All ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(value: Any, *, keep: bool) -> Any:
    """A state with each tensor in one piece on the CPU, gathered one after the other; None for each if not ``keep``."""
    if isinstance(value, Tensor):
        gathered = whole(value.detach())
        return gathered.cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole_state(part, keep=keep) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole_state(part, keep=keep) for part in value)
    return value


def optimizer_state(value: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole state of ``optimizer`` with its tensors split as the parameters that they belong to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    split = {
        index: {name: like(t, parameters[index]) if isinstance(t, Tensor) else t for name, t in state.items()}
        for index, state in value["state"].items()
    }
    return {**value, "state": split}


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """``tensor``, which every rank has whole, split as ``parameter`` is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    placed = tensor.to(parameter.device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)


def plain_copy(module: nn.Module) -> nn.Module:
    """A shallow copy, of a split module as the class that it was before, without FSDP's hooks."""
    kind = type(module)
    if isinstance(module, FSDPModule):
        kind = kind.__mro__[2]
    copied = kind.__new__(kind)
    copied.__dict__ = dict(module.__dict__)
    if isinstance(module, FSDPModule):
        copied.__dict__ |= {name: type(hooks)() for name, hooks in vars(module).items() if name.endswith("_hooks")}
    return copied
