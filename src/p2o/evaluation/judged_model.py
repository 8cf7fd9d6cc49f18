"""The judged model: frozen weights of a folder or hub id, with the adapter on top where the folder holds one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from p2o.config.schema import LoraTuning, ModelConfig
from p2o.policy.builders import ModelError, load_causal_lm, load_tokenizer
from p2o.policy.lora import fuse_adapter
from p2o.policy.memory import keep_fewer_kernels
from p2o.policy.model import DTYPES, Policy, check_head, load_policy

ADAPTER_FILE = "adapter_config.json"


def load_judged(model: ModelConfig, *, as_adapter: bool = False) -> Policy:
    """``model.path`` as a policy of which nothing is trained, on the accelerator if there is one.

    Weights are in ``model.dtype``, an adapter's in float32, as in training. ``as_adapter`` gives a model without an
    adapter one that changes nothing, for engines that are handed adapters only. Raises
    :class:`~p2o.policy.builders.ModelError`.
    """
    folder = Path(model.path).expanduser()
    if not (folder / ADAPTER_FILE).is_file():
        return load_policy(model, LoraTuning(learning_rate=0.0), seed=0) if as_adapter else _loaded(model, None)
    adapter = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    if adapter.get("peft_type") != "LORA":
        raise ModelError(f"model.path={folder} holds an adapter of type {adapter.get('peft_type')}, not LORA")
    base = ModelConfig(
        path=str(adapter["base_model_name_or_path"]),
        revision=adapter.get("revision"),
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        trust_remote_code=model.trust_remote_code,
        chat_template_kwargs=model.chat_template_kwargs,
    )
    try:
        return _loaded(base, folder)
    except ModelError as error:
        raise ModelError(
            f"the adapter in model.path={folder} belongs to {base.path}, see base_model_name_or_path in its "
            f"{ADAPTER_FILE}: {error}"
        ) from error


def _loaded(base: ModelConfig, adapter: Path | None) -> Policy:
    keep_fewer_kernels()
    tokenizer = load_tokenizer(base)
    lm = load_causal_lm(base, DTYPES[base.dtype]).requires_grad_(False)
    lm = cast(PreTrainedModel, nn.Module.to(lm, "cuda" if torch.cuda.is_available() else "cpu"))
    module: PreTrainedModel | PeftModel = lm
    if adapter is not None:
        module = fuse_adapter(PeftModel.from_pretrained(lm, str(adapter), autocast_adapter_dtype=True).eval())
    policy = Policy(module, tokenizer, DTYPES[base.dtype], base)
    check_head(policy)
    return policy
