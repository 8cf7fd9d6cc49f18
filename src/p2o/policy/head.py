"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The head is applied to a chunk of tokens at a time. For z = (h Wᵀ + b) / T and a target t

    log p_t = z_t − logsumexp(z)
    ∂ log p_t / ∂h = ((1 − p_t) W_t − Σ_{v≠t} p_v W_v) / T
    ∂ log p_t / ∂W = (onehot(t) − p) hᵀ / T

The derivative by h depends on the incoming gradient by a scalar a token only. So the forward pass computes it while the
probabilities are at hand and keeps D numbers a token; the backward pass needs no logits unless W itself is trained, and
then computes them again chunk by chunk.

Shapes: N tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

REFERENCE_VOCABULARY = 65536
"""Up to this vocabulary a chunk has as many tokens as asked for; a larger one gets proportionally fewer, so that the
memory of the chunk's logits does not grow with the vocabulary."""

SLAB = 4096
"""Rows of W whose gradient is added at once. The product for all rows is a block so large that the allocator fetches it
from the system anew for every chunk, and page faults take longer than the arithmetic."""


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
    ``hidden``, ``weight`` and ``bias`` where these require them; the entropy carries none. The logits of at most
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


class _Logits:
    """Logits and probabilities of one chunk after the other, in buffers that are allocated once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, temperature: float, rows: int, dtype: torch.dtype) -> None:
        self.weight_VD = weight.detach().to(dtype)
        self.bias_V = None if bias is None else bias.detach().to(dtype)
        self.temperature = temperature
        self.accumulate = torch.promote_types(dtype, torch.float32)
        shape = (rows, weight.shape[0])
        self._logits = torch.empty(shape, dtype=self.accumulate, device=weight.device)
        self._probs = torch.empty(shape, dtype=self.accumulate, device=weight.device)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        logits_CV = self._logits[: hidden_CD.shape[0]]
        logits_CV.copy_(F.linear(hidden_CD, self.weight_VD, self.bias_V))
        return logits_CV.div_(self.temperature) if self.temperature != 1.0 else logits_CV

    def probs(self, logits_CV: Tensor) -> Tensor:
        return torch.softmax(logits_CV, dim=-1, out=self._probs[: logits_CV.shape[0]])


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
        head = _Logits(weight_VD, bias_V, temperature, min(rows, max(1, hidden_ND.shape[0])), dtype)
        logprobs_N = torch.empty(targets_N.shape, dtype=head.accumulate, device=hidden_ND.device)
        entropy_N = torch.empty_like(logprobs_N)
        slope_ND = torch.empty(hidden_ND.shape, dtype=dtype, device=hidden_ND.device) if needs_slope else None
        for start in range(0, hidden_ND.shape[0], rows):
            part = slice(start, start + rows)
            targets_C1 = targets_N[part, None]
            logits_CV = head.logits(hidden_ND[part].to(dtype))
            probs_CV = head.probs(logits_CV)
            # max z − log max p is the log-sum-exp: exact, and a fraction of the cost of a pass of exponentials.
            lse_C = logits_CV.amax(-1) - probs_CV.amax(-1).log()
            logprobs_N[part] = logits_CV.gather(1, targets_C1)[:, 0] - lse_C
            entropy_N[part] = lse_C - logits_CV.mul_(probs_CV).sum(-1)
            if slope_ND is not None:
                rest_C1 = -torch.expm1(logprobs_N[part, None])
                # The target's own share is left out of the product and added exactly: for a confident token the two
                # nearly cancel, and their difference would drown in the rounding of ``dtype``.
                others_CD = probs_CV.scatter_(1, targets_C1, 0.0).to(dtype) @ head.weight_VD
                slope_ND[part] = (rest_C1 * head.weight_VD[targets_C1[:, 0]] - others_CD) / temperature
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, slope_ND)
        ctx.temperature, ctx.rows, ctx.dtype = temperature, rows, dtype
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, slope_ND = ctx.saved_tensors
        grad_hidden = (grad_N[:, None] * slope_ND).to(hidden_ND.dtype) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight, grad_bias = _head_gradients(ctx, grad_N, hidden_ND, weight_VD, bias_V, targets_N)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _head_gradients(
    ctx: Any, grad_N: Tensor, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of W and b, summed over the chunks in float32 from logits that are computed again."""
    head = _Logits(weight_VD, bias_V, ctx.temperature, min(ctx.rows, max(1, hidden_ND.shape[0])), ctx.dtype)
    total_VD = torch.zeros(weight_VD.shape, dtype=head.accumulate, device=weight_VD.device)
    total_V = None if bias_V is None else torch.zeros(bias_V.shape, dtype=head.accumulate, device=bias_V.device)
    for start in range(0, hidden_ND.shape[0], ctx.rows):
        part = slice(start, start + ctx.rows)
        hidden_CD = hidden_ND[part].to(ctx.dtype)
        scale_C1 = grad_N[part, None] / ctx.temperature
        grad_CV = head.probs(head.logits(hidden_CD)).mul_(-scale_C1)
        grad_CV.scatter_add_(1, targets_N[part, None], scale_C1)
        share_CV = grad_CV.to(ctx.dtype)
        for first in range(0, total_VD.shape[0], SLAB):
            total_VD[first : first + SLAB] += share_CV[:, first : first + SLAB].T @ hidden_CD
        if total_V is not None:
            total_V += grad_CV.sum(0)
    return total_VD.to(weight_VD.dtype), None if total_V is None else total_V.to(weight_VD.dtype)
