"""Builders as a user writes them, good and bad."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from p2o.policy.builders import byte_tokenizer

BUILT: list[dict[str, Any]] = []
"""What :func:`narrow` was asked for, call by call."""


def narrow(params: dict[str, Any]) -> tuple[Any, Any]:
    """A model of one layer with the width ``params["width"]``."""
    BUILT.append(dict(params))
    tokenizer = byte_tokenizer()
    width = params.pop("width")  # what a builder does to its params changes nothing
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(shape), tokenizer


def without_tokenizer(params: dict[str, Any]) -> Any:
    return narrow({"width": 8})[0]


def swapped(params: dict[str, Any]) -> tuple[Any, Any]:
    return narrow({"width": 8})[::-1]
