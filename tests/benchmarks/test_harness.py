"""The harness takes turns, measures the work and nothing else, and says what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import harness
from benchmarks.harness import BenchmarkError, Contestant, Result, Row, measure, table


def _sleeper(name: str, seconds: float, mib: int, diary: Path) -> Contestant:
    arguments = {"name": name, "seconds": seconds, "mib": mib, "diary": str(diary)}
    return Contestant(name, "tests.benchmarks.contestants:sleeper", arguments)


def test_contestants_take_turns_and_are_measured(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    row = Row("sleep", (_sleeper("A", 0.05, 8, diary), _sleeper("B", 0.15, 72, diary)), runs=3, memory="added_mib")
    ours, theirs = measure(row, threads=1)
    assert diary.read_text() == "AB" * 4, "a turn to warm up, then three"
    assert len(ours.runs) == len(theirs.runs) == 3
    assert min(run["seconds"] for run in ours.runs) >= 0.05
    assert min(run["seconds"] for run in theirs.runs) >= 0.15
    assert ours.median("added_mib") == pytest.approx(8, abs=4), "without the 32 MiB that it loaded"
    assert theirs.median("added_mib") == pytest.approx(72, abs=4)


def test_long_work_is_measured_fewer_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG_S", 0.1)
    diary = tmp_path / "diary"
    row = Row("sleep", (_sleeper("A", 0.0, 1, diary), _sleeper("B", 0.15, 1, diary)), runs=5)
    ours, _ = measure(row, threads=1)
    assert diary.read_text() == "AB" * harness.LONG_RUNS
    assert len(ours.runs) == harness.LONG_RUNS


def test_a_contestant_that_fails_is_named_with_what_it_said() -> None:
    row = Row("broken", (Contestant("B", "tests.benchmarks.contestants:broken"),))
    with pytest.raises(BenchmarkError, match=r"(?s)B ended with 1.*no such model"):
        measure(row, threads=1)


def _result(name: str, *seconds: float, **figures: Any) -> Result:
    return Result(Contestant(name, ""), [{"seconds": s, "peak_mib": 512.0, **figures} for s in seconds])


def test_the_table_compares_the_first_with_each_other_one() -> None:
    plain = Row("step", ())
    rate = Row("rollouts", (), rate="tokens", memory="")
    text = table(
        [
            (plain, [_result("p2o", 1.0, 2.0, 9.0), _result("X", 8.0, peak_mib=2048.0), _result("Y", 1.0)]),
            (rate, [_result("p2o", 2.0, tokens=6000), _result("Z", 3.0, tokens=3000)]),
            (plain, [_result("p2o", 5.0)]),
        ]
    )
    assert text.splitlines()[2:] == [
        "| step | 2.00 s (1.00–9.00) | X | 8.00 s (8.00–8.00) | 4.0× | 0.50 GiB | 2.00 GiB | 0.25 | 3 |",
        "| step | 2.00 s (1.00–9.00) | Y | 1.00 s (1.00–1.00) | 0.5× | 0.50 GiB | 0.50 GiB | 1.00 | 3 |",
        "| rollouts | 3,000 tokens/s | Z | 1,000 tokens/s | 3.0× | – | – | – | 1 |",
        "| step | 5.00 s (5.00–5.00) | – | – | – | 0.50 GiB | – | – | 1 |",
    ]
