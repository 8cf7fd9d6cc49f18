"""Which processors are told that float32 is faster."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from p2o.config.schema import ModelConfig
from p2o.policy.precision import hint_at_precision, lacks_bfloat16

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


def test_only_bfloat16_on_a_cpu_that_lacks_it_is_hinted_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    hint_at_precision(ModelConfig(path="m", dtype="float32"), "cpu")
    hint_at_precision(ModelConfig(path="m", dtype="bfloat16"), "gpu")
    assert caplog.text == ""
    hint_at_precision(ModelConfig(path="m", dtype="bfloat16"), "cpu")
    lacking = lacks_bfloat16(Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").is_file() else False
    assert ("model.dtype=float32" in caplog.text) == lacking
