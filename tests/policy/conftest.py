"""A tiny random policy in float32 whose adapter (or whose weights) have left their first values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from p2o.config.schema import FullTuning, LoraTuning, RandomModel, TuningConfig
from p2o.policy.model import Policy, load_policy


@pytest.fixture(autouse=True)
def threads_of_the_run() -> Iterator[None]:
    """Models this small only wait for a second thread. `make test-portable` asks for it all the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("P2O_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny"


@pytest.fixture
def tiny_policy(tiny_model: Path) -> Callable[..., Policy]:
    """``tiny_policy("lora" | "full")``: always the same weights."""

    def build(kind: str = "lora", **model: Any) -> Policy:
        tuning: TuningConfig = LoraTuning(r=4) if kind == "lora" else FullTuning()
        policy = load_policy(RandomModel(path=str(tiny_model), dtype="float32", **model), tuning, seed=0)
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in policy.trainable.values():
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
        return policy

    return build
