"""Which processors compute in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from p2o.config.precision import lacks_bfloat16, native_dtype

X86 = "processor\t: 0\nmodel name\t: A bf16 in the name\nflags\t\t: fpu sse2 avx2 avx512f{}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve{}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "lacks"),
    [
        (X86.format(""), True),
        (X86.format(" avx512_bf16"), False),
        (X86.format(" amx_bf16 amx_tile"), False),
        (ARM.format(""), True),
        (ARM.format(" bf16"), False),
        ("processor\t: 0\n", False),
        ("", False),
    ],
)
def test_a_processor_says_what_it_can(cpuinfo: str, lacks: bool) -> None:
    assert lacks_bfloat16(cpuinfo) == lacks


@pytest.mark.parametrize(("flags", "cpu"), [("", "float32"), (" avx512_bf16", "bfloat16")])
def test_a_cpu_that_emulates_bfloat16_computes_in_float32(flags: str, cpu: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86.format(flags))
    assert native_dtype("cpu", tmp_path / "cpuinfo") == cpu
    assert native_dtype("gpu", tmp_path / "cpuinfo") == "bfloat16"
    assert native_dtype("cpu", tmp_path / "of another system") == "bfloat16"


@pytest.mark.parametrize("model", ["smollm2", "hub", "custom", "qwen3_4b"])
def test_the_choice_stands_in_the_configuration(model: str, compose_tree: Callable[..., DictConfig]) -> None:
    """A run is known by the arithmetic that it began with: on another processor it is refused, not changed."""
    overrides = [f"model={model}", *(("model.path=m",) if model != "custom" else ("model.builder=a.b", "model.path=m"))]
    assert compose_tree(*overrides).model.dtype == native_dtype("cpu")
    assert compose_tree(*overrides, "trainer=gpu").model.dtype == "bfloat16"
    assert compose_tree(*overrides, "model.dtype=float32", "trainer=gpu").model.dtype == "float32"
