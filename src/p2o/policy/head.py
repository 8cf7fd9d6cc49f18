"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The head is applied to a chunk of tokens at a time. For z = (h Wᵀ + b) / T and a target t

    log p_t = z_t − logsumexp(z)
    ∂ log p_t / ∂h = ((1 − p_t) W_t − Σ_{v≠t} p_v W_v) / T
    ∂ log p_t / ∂W = (onehot(t) − p) hᵀ / T

The derivative by h depends on the incoming gradient only by a scalar per token. So the forward pass computes it while
the probabilities are at hand and keeps D numbers per token; the backward pass needs no logits unless W itself is
trained, and then recomputes them chunk by chunk.

Shapes: N tokens, D hidden size, V vocabulary, C tokens of a chunk, B tokens of a block of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

REFERENCE_VOCABULARY = 65536
"""Up to this vocabulary a chunk has as many tokens as asked for; a larger one gets proportionally fewer, so that the
memory of the chunk's logits does not grow with the vocabulary."""

BLOCK = 16
"""Rows of a chunk whose softmax is computed at once on a CPU, so that its passes find them in the cache."""

SLAB = 4096
"""Rows of W whose gradient is added at once. The product for all rows is so large that the allocator fetches it from
the system again for every chunk, and page faults take longer than the arithmetic."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of ``targets`` and entropies of the distributions they were taken from, both float32 [N].

    ``hidden`` [N, D], ``weight`` [V, D], ``bias`` [V] or None, ``targets`` [N]. The matrix products run in ``dtype``
    (default: that of ``hidden``), the softmax in float32 (float64 for float64). Gradients flow from the log-probs to
    ``hidden``, ``weight`` and ``bias`` if these require them; the entropy carries none. The logits of at most
    ``chunk`` tokens exist at once, see :data:`REFERENCE_VOCABULARY`.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"expected hidden [N, D], weight [V, D], targets [N]; "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    rows = max(1, chunk * REFERENCE_VOCABULARY // max(weight.shape[0], REFERENCE_VOCABULARY))
    needs_slope = torch.is_grad_enabled() and hidden.requires_grad
    return _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, rows, dtype or hidden.dtype, needs_slope)


def block_rows(device: str) -> int:
    """Rows of a chunk whose softmax is computed at once on this type of device; a GPU takes all, to launch less."""
    return BLOCK if device == "cpu" else sys.maxsize


class _Head:
    """Logits chunk by chunk, and their softmax one block of rows at a time, in buffers allocated once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, temperature: float, rows: int, dtype: torch.dtype) -> None:
        self.weight_VD = weight.detach().to(dtype)
        self.bias_V = None if bias is None else bias.detach().to(dtype)
        self.temperature = temperature
        self.accumulate = torch.promote_types(dtype, torch.float32)
        self._logits = torch.empty(rows, weight.shape[0], dtype=dtype, device=weight.device)
        shape = (min(rows, block_rows(weight.device.type)), weight.shape[0])
        self._wide = torch.empty(shape, dtype=self.accumulate, device=weight.device)
        self._probs = torch.empty_like(self._wide)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """[C, V] before the temperature, in the dtype of the products; overwritten by the next call."""
        logits_CV = self._logits[: hidden_CD.shape[0]]
        if self.bias_V is None:
            return torch.mm(hidden_CD, self.weight_VD.T, out=logits_CV)
        return torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=logits_CV)

    def blocks(self, logits_CV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For each block its rows, z = logits / T and the probabilities, [B, V]; overwritten by the next."""
        for first in range(0, logits_CV.shape[0], len(self._wide)):
            rows = slice(first, min(first + len(self._wide), logits_CV.shape[0]))
            z_BV = self._wide[: rows.stop - first].copy_(logits_CV[rows])
            if self.temperature != 1.0:
                z_BV.div_(self.temperature)
            yield rows, z_BV, torch.softmax(z_BV, dim=-1, out=self._probs[: len(z_BV)])


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        rows: int,
        dtype: torch.dtype,
        needs_slope: bool,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(weight_VD, bias_V, temperature, min(rows, max(1, hidden_ND.shape[0])), dtype)
        logprobs_N = torch.empty(targets_N.shape, dtype=head.accumulate, device=hidden_ND.device)
        entropy_N = torch.empty_like(logprobs_N)
        slope_ND = torch.empty(hidden_ND.shape, dtype=dtype, device=hidden_ND.device) if needs_slope else None
        for start in range(0, hidden_ND.shape[0], rows):
            chunk = slice(start, start + rows)
            targets_C = targets_N[chunk]
            logprobs_C, entropy_C = logprobs_N[chunk], entropy_N[chunk]
            logits_CV = head.logits(hidden_ND[chunk].to(dtype))
            for block, z_BV, probs_BV in head.blocks(logits_CV):
                targets_B1 = targets_C[block, None]
                # max z − log max p is the log-sum-exp: exact, and a fraction of the cost of a pass of exponentials.
                lse_B = z_BV.amax(-1) - probs_BV.amax(-1).log()
                logprobs_C[block] = z_BV.gather(1, targets_B1)[:, 0] - lse_B
                entropy_C[block] = lse_B - z_BV.mul_(probs_BV).sum(-1)
                if slope_ND is not None:
                    # The target's own share is left out of the product and added exactly: for a confident token the
                    # two nearly cancel, and their difference would drown in the rounding of ``dtype``.
                    logits_CV[block] = probs_BV.scatter_(1, targets_B1, 0.0)
            if slope_ND is not None:
                rest_C1 = -torch.expm1(logprobs_C[:, None])
                others_CD = logits_CV @ head.weight_VD
                slope_ND[chunk] = (rest_C1 * head.weight_VD[targets_C] - others_CD) / temperature
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, slope_ND)
        ctx.rows = rows
        ctx.head = head if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else None
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, slope_ND = ctx.saved_tensors
        grad_hidden = (grad_N[:, None] * slope_ND).to(hidden_ND.dtype) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = None, None
        if ctx.head is not None:
            total_VD, grad_bias = _head_gradients(ctx.head, ctx.rows, grad_N, hidden_ND, targets_N)
            grad_weight = total_VD.to(weight_VD.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _head_gradients(
    head: _Head, rows: int, grad_N: Tensor, hidden_ND: Tensor, targets_N: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of W and b, summed over the chunks in float32 from recomputed logits."""
    total_VD = torch.zeros_like(head.weight_VD, dtype=head.accumulate)
    total_V = None if head.bias_V is None else torch.zeros_like(head.bias_V, dtype=head.accumulate)
    for start in range(0, hidden_ND.shape[0], rows):
        chunk = slice(start, start + rows)
        hidden_CD, targets_C = hidden_ND[chunk].to(head.weight_VD.dtype), targets_N[chunk]
        scale_C = grad_N[chunk] / head.temperature
        grad_CV = head.logits(hidden_CD)
        for block, _, probs_BV in head.blocks(grad_CV):
            scale_B1 = scale_C[block, None]
            grad_BV = probs_BV.mul_(-scale_B1).scatter_add_(1, targets_C[block, None], scale_B1)
            if total_V is not None:
                total_V += grad_BV.sum(0)
            grad_CV[block] = grad_BV
        for first in range(0, total_VD.shape[0], SLAB):
            total_VD[first : first + SLAB] += grad_CV[:, first : first + SLAB].T @ hidden_CD
    return total_VD, total_V
