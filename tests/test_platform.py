"""A run that continues on another platform says so: its bits may differ."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import torch

from p2o import environment
from p2o.config import Config
from p2o.environment import platform_of, warn_of_another_platform


def test_the_processor_is_named_as_the_system_names_it(configure: Callable[..., Config]) -> None:
    told = subprocess.run(["lscpu"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("Model name")]
    if not names:
        pytest.skip("lscpu does not say")
    assert platform_of(configure())["processor"] in names


def test_the_gpu_and_the_engine_are_named_where_they_are_used(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Abacus")
    monkeypatch.setattr(environment, "installed_versions", lambda: {"torch": "2.10", "vllm": "0.32"})
    told = platform_of(configure("rollout=vllm"))
    assert (told["gpu"], told["torch"], told["vllm"]) == ("NVIDIA Abacus", "2.10", "0.32")
    assert "vllm" not in platform_of(configure())


@pytest.mark.parametrize("name", ["processor", "gpu", "vllm"])
def test_another_one_is_told_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_another_platform({name: "a", "torch": "2"}, {name: "a", "torch": "2"})
    assert caplog.text == ""
    warn_of_another_platform({name: "a", "torch": "2"}, {name: "b", "torch": "2"})
    assert f"{name} a → b" in caplog.text
