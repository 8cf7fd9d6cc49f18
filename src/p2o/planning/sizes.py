"""How large a model is, from its configuration alone: no weight is loaded.

The model is built from tensors without memory. A pass through one and through two of its layers tells what a forward
pass keeps for the backward pass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config

from p2o.config.schema import CustomModel, LoraTuning, ModelConfig, TuningConfig
from p2o.policy.builders import ModelError, folder_of, load_shape
from p2o.policy.lean import keep_less
from p2o.policy.lora import fuse_adapter, with_adapter
from p2o.policy.model import DTYPES

QWEN3_4B = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_key_value_heads=8,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
)
PUBLISHED = {"Qwen/Qwen3-4B": QWEN3_4B}
"""Shapes of the models that ``conf/model`` names by a hub id, so that a plan of them needs no hub."""
TOKENS = (61, 127)
"""Lengths of two passes; their difference gives the bytes of one token. Primes, so that no width equals them."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters and bytes of a model as it is trained."""

    parameters: int
    """Including the adapter's."""
    trainable: int
    head: int
    """Elements of the output layer's weight, V × D."""
    vocabulary: int
    context: int | None
    """Positions that the model can attend to."""
    kept_per_token: int
    """Bytes that a forward pass keeps for the backward pass, for one token of a micro-batch."""
    cache_per_token: int
    """Bytes of the keys and values of one token, in ``model.dtype``."""

    @property
    def frozen(self) -> int:
        return self.parameters - self.trainable


_known: dict[str, ModelSize] = {}
"""The sizes found so far: a sweep asks for the same one many times."""


def model_size(model: ModelConfig, tuning: TuningConfig, *, fused_lora: bool = True) -> ModelSize:
    """The size with the adapter fused or not (``policy.fused_lora``).

    Raises :class:`ModelError` if the model's config.json cannot be read, with the fix.
    """
    asked = repr((model, tuning, fused_lora))
    if asked not in _known:
        _known[asked] = _measure(read_shape(model), model, tuning, fused_lora)
    return _known[asked]


def _measure(shape: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig, fused_lora: bool) -> ModelSize:
    text, dtype = shape.get_text_config(), DTYPES[model.dtype]
    trained = _on_meta(shape, model, tuning, fused_lora)
    one, two = (_kept_per_token(shape, model, tuning, fused_lora, layers) for layers in (1, 2))
    layer = two - one
    if model.gradient_checkpointing:  # only its input is kept, except of the layer that is computed again
        layer = text.hidden_size * (dtype if isinstance(tuning, LoraTuning) else torch.float32).itemsize
    head = cast(nn.Linear, trained.get_output_embeddings()).weight
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in trained.parameters()),
        trainable=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        head=head.numel(),
        vocabulary=head.shape[0],
        context=getattr(text, "max_position_embeddings", None),
        kept_per_token=round(one + (text.num_hidden_layers - 1) * layer),
        cache_per_token=2 * text.num_hidden_layers * heads * width * dtype.itemsize,
    )


def read_shape(model: ModelConfig) -> PreTrainedConfig:
    """The model's config.json. A model that is built in seconds is built; a custom one, which may take long, must be
    there already."""
    if isinstance(model, CustomModel) and not folder_of(model).is_dir():
        raise ModelError(
            f"the model of model.builder={model.builder} is not built yet, and a plan does not wait for it: give the "
            "same command without debug=plan first, which builds it"
        )
    if model.path in PUBLISHED and model.revision is None:
        return PUBLISHED[model.path]
    return load_shape(model)


def _on_meta(shape: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig, fused_lora: bool) -> PreTrainedModel:
    """The model as :func:`~p2o.policy.model.load_policy` makes it, with the adapter's layers if it has one."""
    lora = isinstance(tuning, LoraTuning)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(
            shape,
            dtype=DTYPES[model.dtype] if lora else torch.float32,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
        if model.lean_layers:
            keep_less(lm)
        if not isinstance(tuning, LoraTuning):
            return lm
        module = with_adapter(lm, model, tuning, seed=0)
        if fused_lora:
            fuse_adapter(module)
        return cast(PreTrainedModel, module.get_base_model())


def _kept_per_token(
    shape: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig, fused_lora: bool, layers: int
) -> float:
    """Bytes that a pass through the first ``layers`` layers keeps for each token."""
    shape = copy.deepcopy(shape)
    text = shape.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    lm = _on_meta(shape, model, tuning, fused_lora)
    with FakeTensorMode(allow_non_fake_inputs=True):
        lm.to_empty(device="cpu")  # autocast treats fake CPU tensors as it treats real ones
        short, long = (_kept(lm, tokens, DTYPES[model.dtype]) for tokens in TOKENS)
    return (long - short) / (TOKENS[1] - TOKENS[0])


def _kept(lm: Any, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors that a pass over ``tokens`` tokens keeps; weights are the same in both, and cancel."""
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] != (tokens, tokens):  # a causal mask; training's attention has none
            storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long)
    arithmetic = torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
        getattr(lm, lm.base_model_prefix)(
            input_ids=ids, position_ids=torch.arange(tokens)[None], attention_mask=None, use_cache=False
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
