"""What the worker asks of vLLM, and in which order, with a recorder in vLLM's place: a GPU sleeps and wakes, the CPU
build does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from p2o.rollout.vllm_worker import Worker

OPTIONS: dict[str, Any] = {
    "model": "folder",
    "max_model_len": 64,
    "kv_cache_gib": None,
    "stop_token_ids": [2],
    "lora_rank": 4,
    "shares_memory": False,
    "extra": {},
}


class Recorder:
    """Of ``LLMEngine``: the calls by name and argument."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.model_config = SimpleNamespace(max_model_len=64)
        self.calls: list[tuple[str, Any]] = []
        self.resets = True

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", tags))

    def add_lora(self, request: Any) -> bool:
        self.calls.append(("add_lora", request.name))
        return True

    def remove_lora(self, number: int) -> None:
        self.calls.append(("remove_lora", number))

    def collective_rpc(self, name: str, kwargs: dict[str, Any] | None = None) -> None:
        self.calls.append((name, kwargs))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache", None))
        return self.resets

    def add_request(self, name: str, *_: Any, **__: Any) -> None:
        self.calls.append(("add_request", name))

    def has_unfinished_requests(self) -> bool:
        return False


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Worker, Recorder]]:
    """``start(extra=...)``: a worker on a GPU, and the recorder that stands for its engine."""

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def lora(name: str, number: int, folder: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, lora_int_id=number, folder=folder)

    module("vllm", SamplingParams=SimpleNamespace)
    module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(FINAL_ONLY=2))
    module("vllm.config.lora", MaxLoRARanks=Literal[8, 16])
    module("vllm.engine.arg_utils", EngineArgs=dict)
    module("vllm.lora.request", LoRARequest=lora)
    module("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: False))
    module("vllm.v1.engine.llm_engine", LLMEngine=SimpleNamespace(from_engine_args=Recorder))

    def begin(**changes: Any) -> tuple[Worker, Recorder]:
        worker = Worker({**OPTIONS, **changes}, lambda _: None)
        return worker, worker._engine

    return begin


def ask(worker: Worker) -> None:
    worker.generate([(0, (5, 6), 1)], 1.0, 1.0, 8, adapter=True)


def test_the_engine_is_no_process_of_its_own(
    start: Callable[..., tuple[Worker, Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU such a one was seen to live on, with all its memory, when the trainer was killed."""
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    start()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_a_sync_wakes_the_weights_and_a_request_the_cache(start: Callable[..., tuple[Worker, Recorder]]) -> None:
    worker, engine = start()
    worker.load_adapter("one", 1, "folder")
    worker.sleep()
    worker.sleep()
    worker.load_adapter("two", 2, "folder")
    ask(worker)
    ask(worker)
    assert engine.calls == [
        ("add_lora", "one"),
        ("reset_prefix_cache", None),
        ("sleep", 1),  # level 2 would lose the weights
        ("wake_up", ["weights"]),
        ("remove_lora", 1),
        ("add_lora", "two"),
        ("reset_prefix_cache", None),
        ("wake_up", ["kv_cache"]),
        ("add_request", "0"),
        ("add_request", "0"),
    ]


@pytest.mark.parametrize(
    ("load", "first"),
    [
        (lambda worker: worker.load_weights("folder"), "reload_weights"),
        (lambda worker: worker.read_weights({}), "init_weight_transfer_engine"),
    ],
)
def test_whole_weights_come_into_an_engine_whose_weights_are_awake(
    load: Callable[[Worker], None], first: str, start: Callable[..., tuple[Worker, Recorder]]
) -> None:
    worker, engine = start(lora_rank=None)
    worker.sleep()
    load(worker)
    names = [name for name, _ in engine.calls]
    assert names[:3] == ["sleep", "wake_up", first]
    assert engine.calls[1] == ("wake_up", ["weights"])
    assert names[-1] == "reset_prefix_cache"


def test_a_request_wakes_all_of_a_sleeping_engine(start: Callable[..., tuple[Worker, Recorder]]) -> None:
    worker, engine = start()
    worker.sleep()
    ask(worker)
    assert engine.calls == [("sleep", 1), ("wake_up", ["weights", "kv_cache"]), ("add_request", "0")]


def test_a_prefix_cache_that_stays_is_an_error(start: Callable[..., tuple[Worker, Recorder]]) -> None:
    worker, engine = start()
    engine.resets = False
    with pytest.raises(RuntimeError, match="did not reset its prefix cache"):
        worker.load_adapter("one", 1, "folder")


def test_arguments_of_the_user_win(start: Callable[..., tuple[Worker, Recorder]]) -> None:
    _, engine = start(extra={"enable_prefix_caching": False, "max_model_len": 32, "seed": 3})
    arguments = engine.arguments
    assert (arguments["enable_prefix_caching"], arguments["max_model_len"], arguments["seed"]) == (False, 32, 3)
    assert (arguments["max_lora_rank"], arguments["enable_sleep_mode"]) == (8, True)
