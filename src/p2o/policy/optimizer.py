"""The optimizer of a policy."""

from __future__ import annotations

import torch

from p2o.config.schema import PolicyConfig
from p2o.policy.model import Policy


def adamw(policy: Policy, learning_rate: float, config: PolicyConfig) -> torch.optim.AdamW:
    """AdamW on the trained tensors.

    Full tuning uses the fused form: the other one holds another copy of all weights while it steps.
    """
    return torch.optim.AdamW(
        policy.trainable.values(),
        lr=learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=not policy.lora,
    )
