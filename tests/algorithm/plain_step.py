"""One optimizer step's loss and gradient, written out plainly: one padded batch, all logits, float64.

Nothing of the layouts, the head, the losses or the tally is used; the model is a float64 copy of the policy's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.model import Policy
from p2o.types import PLAIN, Group, Rollout


@dataclass
class PlainStep:
    loss: float
    gradients: dict[str, Tensor]
    tokens: int
    kept: int
    clipped: int
    mean_ratio: float
    entropy: float


def plain_logprobs(
    module: torch.nn.Module, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies at the answers' tokens, each flat."""
    rows = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    logp_BTV = torch.log_softmax(module(input_ids=ids_BT, attention_mask=mask_BT).logits / temperature, -1)
    entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
    logprobs, entropies = [], []
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        logprobs.append(logp_BTV[b, at].gather(1, torch.tensor(answer)[:, None])[:, 0])
        entropies.append(entropy_BT[b, at])
    return torch.cat(logprobs), torch.cat(entropies)


def plain_step(
    policy: Policy,
    groups: Sequence[Group],
    config: PolicyConfig,
    distillation: DistillationConfig,
    *,
    temperature: float,
    max_new_tokens: int,
    weights: dict[str, Tensor] | None = None,
    weights_before: dict[str, Tensor] | None = None,
) -> PlainStep:
    """The step on ``groups``, under ``weights`` if they are not the policy's own.

    ``weights_before`` are those that the old log-probs come from, where they are not ``weights``.
    """
    module = copy.deepcopy(policy.module).double().train()
    _take(module, weights)
    chosen: list[Rollout] = []
    prompts: list[tuple[int, ...]] = []
    advantages: list[float] = []
    for group in groups:
        rewards = torch.tensor(group.rewards, dtype=torch.float64)
        if (rewards == rewards[0]).all():
            continue
        centred = rewards - rewards.mean()
        scaled = centred if config.loss == "dr_grpo" else centred / rewards.std()
        for rollout, advantage in zip(group.rollouts, scaled.tolist(), strict=True):
            templated = rollout.template_id != PLAIN
            if distillation.positive_only and templated and advantage < 0:
                continue
            chosen.append(rollout)
            prompts.append(rollout.prompt_tokens if distillation.kind == "off" else group.plain_prompt)
            advantages.append(advantage)

    answers = [r.tokens for r in chosen]
    repeats = torch.tensor([len(a) for a in answers])
    advantage = torch.tensor(advantages, dtype=torch.float64).repeat_interleave(repeats)
    templated = torch.tensor([r.template_id != PLAIN for r in chosen]).repeat_interleave(repeats)
    engine = torch.tensor([x for r in chosen for x in r.logprobs], dtype=torch.float64)
    new, entropy = plain_logprobs(module, prompts, answers, temperature)
    policy_old = new.detach()
    if weights_before is not None:
        before = copy.deepcopy(module)
        _take(before, weights_before)
        with torch.no_grad():
            policy_old = plain_logprobs(before, prompts, answers, temperature)[0]

    old = torch.where(templated, engine, policy_old) if distillation.kind == "importance" else policy_old
    ratio = torch.exp(new - old)
    low, high = 1 - config.clip_low, 1 + config.clip_high
    loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, low, high))
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    if config.dual_clip:
        bound = -advantage * config.dual_clip
        clipped = clipped | ((advantage < 0) & (ratio > config.dual_clip))
        loss = torch.where(advantage < 0, torch.minimum(loss, bound), loss)
    kept = torch.ones_like(templated)
    if distillation.kind == "mask":
        context = torch.exp(policy_old - engine)
        kept = ~(templated & ((context < distillation.low) | (context > distillation.high)))

    counted = int(kept.sum()) if distillation.mask_denominator == "kept" else len(kept)
    denominator = len(chosen) * max_new_tokens if config.loss == "dr_grpo" else counted
    total = loss[kept].sum() / denominator
    total.backward()
    return PlainStep(
        loss=float(total.detach()),
        gradients={n: p.grad for n, p in module.named_parameters() if p.requires_grad and p.grad is not None},
        tokens=len(kept),
        kept=int(kept.sum()),
        clipped=int(clipped[kept].sum()),
        mean_ratio=float(ratio[kept].detach().mean()),
        entropy=float(entropy.detach().mean()),
    )


@torch.no_grad()
def _take(module: torch.nn.Module, weights: dict[str, Tensor] | None) -> None:
    parameters = dict(module.named_parameters())
    for name, weight in (weights or {}).items():
        parameters[name].copy_(weight)
