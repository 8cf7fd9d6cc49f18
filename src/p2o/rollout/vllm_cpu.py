"""What makes vLLM's CPU build fit for the engine: its options, and two repairs. Imported in vLLM's processes alone."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


def options() -> dict[str, Any]:
    """Threads where the system puts them, which makes for a quick start.

    A prompt is prefilled in one piece, since a request with a seed of its own may not be cut there: the sampler would
    wind a generator back, which those of a CPU cannot. Only whole blocks of a prompt are shared, and the CPU's default
    of 128 tokens exceeds most prompts: with 32, groups of six with prompts of 85 tokens take 0.57 of the time.
    """
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # the engine runs its model itself: further processes would poll for its orders, on the cores that it needs
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    extension = f"{CpuWorker.__module__}.{CpuWorker.__name__}"
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "block_size": 32,
        "worker_extension_cls": extension,
    }


class CpuWorker:
    """Added to vLLM's worker, which has its methods called by name."""

    def repack_head(self: Any) -> None:
        """The CPU build multiplies by a packed copy of the output layer, which a reload leaves as it was if the layer
        shares its weights with the embedding."""
        head = self.get_model().lm_head
        head.quant_method.process_weights_after_loading(head)


def _add_adapter(
    self: Any,
    y: Tensor,
    x: Tensor,
    lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """y += scale · x Aᵀ Bᵀ, for each of the layers that vLLM has put side by side; A [1, 1, R, D], B [1, 1, O, R].

    The CPU build copies the adapter's matrices for every token of a step. There is one adapter here, so two matrix
    products do: SmolLM2 decodes in a fifth of the time. A token of a request without an adapter has the index -1.
    """
    if self.no_lora:
        return
    x_ND, y_NO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    scale_N1 = (self.token_lora_indices >= 0).to(x.dtype)[:, None] * scale
    start = 0
    for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        y_NO[:, start : start + width] += linear(linear(x_ND, a[0, 0]) * scale_N1, b[0, 0])
        start += width


PunicaWrapperCPU.add_lora_linear = _add_adapter
PunicaWrapperCPU.add_lora_logits = lambda *_, **__: None  # the head is never trained by an adapter
