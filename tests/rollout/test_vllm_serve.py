"""The arguments that vLLM is started with, with stand-ins for the modules of vLLM that they are made from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from p2o.rollout import vllm_serve

OPTIONS: dict[str, Any] = {
    "model": "folder",
    "max_model_len": 64,
    "kv_cache_gib": None,
    "lora_rank": 4,
    "shares_memory": False,
    "extra": {},
}


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``arguments(extra=...)``: what a server on a GPU is started with."""

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    names = ("model", "max_model_len", "enable_prefix_caching", "seed")
    module("vllm.config.lora", MaxLoRARanks=Literal[8, 16])
    module("vllm.engine.arg_utils", AsyncEngineArgs=make_dataclass("AsyncEngineArgs", names))
    module("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    return lambda **changes: vllm_serve._arguments({**OPTIONS, **changes})


def test_arguments_of_the_user_win(arguments: Callable[..., dict[str, Any]]) -> None:
    made = arguments(extra={"enable_prefix_caching": False, "max_model_len": 32, "seed": 3})
    assert (made["enable_prefix_caching"], made["max_model_len"], made["seed"]) == (False, 32, 3)
    assert (made["max_lora_rank"], made["enable_sleep_mode"]) == (8, True)
    assert made["kv_cache_memory_bytes"] is None
    assert arguments(kv_cache_gib=0.5)["kv_cache_memory_bytes"] == 2**29


def test_arguments_that_vllm_does_not_have_are_named(arguments: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"rollout\.engine_args: vLLM's EngineArgs have no max_tokens"):
        arguments(extra={"max_tokens": 1})


def test_a_rank_above_all_is_named(arguments: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"tuning\.r=32"):
        arguments(lora_rank=32)
    assert "enable_lora" not in arguments(lora_rank=None)


def test_handles_are_taken_only_from_a_trainer_that_shares_its_memory(
    arguments: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "weight_transfer_config" not in arguments()
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in os.environ
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")  # set back afterwards
    assert arguments(shares_memory=True)["weight_transfer_config"] == {"backend": "ipc"}
    assert os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
