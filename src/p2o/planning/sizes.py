"""How large a model is, from its configuration alone: no weight is loaded.

The model is built on torch's meta device. What a forward pass keeps for the backward pass is read off a pass of one
and of two of its layers on tensors without memory.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from p2o.config.schema import CustomModel, LoraTuning, ModelConfig, TuningConfig
from p2o.policy.builders import ModelError, folder_of, resolve_model
from p2o.policy.lean import keep_less
from p2o.policy.lora import with_adapter
from p2o.policy.model import DTYPES

HUB_TIMEOUT_S = 5.0
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-4B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }
}
"""Shapes of the models that ``conf/model`` names by a hub's id, so that a plan of them needs no hub."""
TOKENS = (61, 127)
"""Lengths of the two passes whose difference gives the bytes of one token: primes, which no width of a model is."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters and bytes of a model as it is trained."""

    parameters: int
    """The adapter's included."""
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


def model_size(model: ModelConfig, tuning: TuningConfig) -> ModelSize:
    """Raises :class:`ModelError` where the model's configuration cannot be had, naming the mend."""
    config = read_config(model)
    trained = _on_meta(config, model, tuning)
    head = cast(nn.Linear, trained.get_output_embeddings())
    element = DTYPES[model.dtype].itemsize
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in trained.parameters()),
        trainable=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        head=head.weight.numel(),
        vocabulary=head.weight.shape[0],
        context=getattr(text, "max_position_embeddings", None),
        kept_per_token=_kept_per_token(config, model, tuning),
        cache_per_token=2 * text.num_hidden_layers * heads * width * element,
    )


def read_config(model: ModelConfig) -> PreTrainedConfig:
    """The model's config.json: from its folder, the hub's cache, :data:`PUBLISHED` or the hub. Builders' folders are
    made where that takes seconds; a custom model, which may take long, must be there already."""
    if isinstance(model, CustomModel) and not folder_of(model).is_dir():
        raise ModelError(
            f"the model of model.builder={model.builder} is not built yet, and a plan does not wait for it: give the "
            "same command without debug=plan first, which builds it"
        )
    source = resolve_model(model)
    try:
        return AutoConfig.from_pretrained(
            source,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        if isinstance(source, Path):
            raise ModelError(f"the config.json of model.path={source} cannot be read [{error}]") from error
        if source in PUBLISHED and model.revision is None:
            return _from_values(PUBLISHED[source])
        return _from_hub(source, model.revision)


def _from_hub(name: str, revision: str | None) -> PreTrainedConfig:
    """One request that gives up at once: the hub's own client would repeat it for half a minute."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, "config.json", revision=revision)
    try:
        reply = get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S, follow_redirects=True)
        reply.raise_for_status()
        return _from_values(json.loads(reply.text))
    except Exception as error:  # whatever the hub's client and its transport raise: there is no configuration
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the sizes of model.path={name} are not known here: it is neither in the hub's cache nor to be had from "
            f"the hub. Give model.path=<folder with its config.json>; no weights are needed [{reason}]"
        ) from error


def _from_values(values: Mapping[str, Any]) -> PreTrainedConfig:
    return CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))


def _on_meta(config: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig) -> PreTrainedModel:
    """The transformers model, with its adapter's layers where there are any, as :func:`load_policy` makes it."""
    lora = isinstance(tuning, LoraTuning)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(
            config,
            dtype=DTYPES[model.dtype] if lora else torch.float32,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
        keep_less(lm)
        if isinstance(tuning, LoraTuning):
            return cast(PreTrainedModel, with_adapter(lm, model, tuning, seed=0).get_base_model())
        return lm


def _kept_per_token(config: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig) -> int:
    """Bytes that one token of a forward pass keeps, all layers together."""
    kept = {layers: _kept_of_layers(config, model, tuning, layers) for layers in (1, 2)}
    text = config.get_text_config()
    layer = kept[2] - kept[1]
    if model.gradient_checkpointing:  # of all layers but the one that is computed anew, its input
        layer = text.hidden_size * (DTYPES[model.dtype] if isinstance(tuning, LoraTuning) else torch.float32).itemsize
    return round(kept[1] + (text.num_hidden_layers - 1) * layer)


def _kept_of_layers(config: PreTrainedConfig, model: ModelConfig, tuning: TuningConfig, layers: int) -> float:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    lm = _on_meta(config, model, tuning)
    with FakeTensorMode():
        _without_memory(lm)
        short, long = (_kept(lm, tokens, DTYPES[model.dtype]) for tokens in TOKENS)
    return (long - short) / (TOKENS[1] - TOKENS[0])


def _without_memory(lm: nn.Module) -> None:
    """Move a model from meta to fake CPU tensors, which autocast treats as it treats real ones."""
    for module in lm.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(p.shape, dtype=p.dtype, device="cpu"), requires_grad=p.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _kept(lm: Any, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors that a pass over ``tokens`` tokens keeps; weights, and copies of them, cancel later."""
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] != (tokens, tokens):  # a causal mask, which the attention of the training does without
            storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long)
    arithmetic = torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
        getattr(lm, lm.base_model_prefix)(
            input_ids=ids, position_ids=torch.arange(tokens)[None], attention_mask=None, use_cache=False
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def installed_memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
