"""The harness takes turns, measures the work and nothing else, and says what went wrong."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import default_job, grading, grpo_step, harness, policy_loss, rollouts, template_evaluation
from benchmarks.harness import Contestant, Result, Row, measure, table


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
    assert ours.median("added_mib") == pytest.approx(8, abs=12), "without the 32 MiB that it loaded"
    assert theirs.median("added_mib") == pytest.approx(72, abs=12)


def test_of_long_work_the_first_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG_S", 0.1)
    diary = tmp_path / "diary"
    row = Row("sleep", (_sleeper("A", 0.0, 1, diary), _sleeper("B", 0.15, 1, diary)), runs=3)
    ours, _ = measure(row, threads=1)
    assert diary.read_text() == "AB" * 3
    assert len(ours.runs) == 3


def test_a_contestant_that_fails_says_why_and_leaves_the_others_alone(tmp_path: Path) -> None:
    broken = Contestant("B", "tests.benchmarks.contestants:broken")
    row = Row("broken", (_sleeper("A", 0.0, 1, tmp_path / "diary"), broken), runs=2)
    ours, theirs = measure(row, threads=1)
    assert (len(ours.runs), ours.error) == (2, "")
    assert re.search(r"(?s)B ended with 1.*no such model", theirs.error)
    assert table([(row, [ours, theirs])]) == table([(row, [ours])])


def test_memory_counts_the_processes_that_a_contestant_started() -> None:
    row = Row("parent", (Contestant("P", "tests.benchmarks.contestants:parent", {"mib": 64}),), runs=1)
    (ours,) = measure(row, threads=1)
    assert ours.median("added_mib") > 64


def _result(name: str, *seconds: float, **figures: Any) -> Result:
    return Result(Contestant(name, ""), [{"seconds": s, "peak_mib": 512.0, **figures} for s in seconds])


def test_the_table_compares_the_first_with_each_other_one() -> None:
    plain = Row("step", ())
    job = Row("job", (), memory="", outcome="accuracy")
    rate = Row("rollouts", (), rate="tokens", memory="")
    text = table(
        [
            (plain, [_result("p2o", 1.0, 2.0, 9.0), _result("X", 8.0, peak_mib=2048.0), _result("Y", 1.0)]),
            (rate, [_result("p2o", 2.0, tokens=6000), _result("Z", 3.0, tokens=3000)]),
            (job, [_result("p2o", 5.0, accuracy=0.6)]),
        ]
    )
    assert text.splitlines()[2:] == [
        "| step | 2.00 s (1.00–9.00) | X | 8.00 s (8.00–8.00) | 4.0× | 0.50 GiB | 2.00 GiB | 0.25 | 3 |",
        "| step | 2.00 s (1.00–9.00) | Y | 1.00 s (1.00–1.00) | 0.5× | 0.50 GiB | 0.50 GiB | 1.00 | 3 |",
        "| rollouts | 3,000 tokens/s (3,000–3,000) | Z | 1,000 tokens/s (1,000–1,000) | 3.0× | – | – | – | 1 |",
        "| job | 5.00 s (5.00–5.00), accuracy 0.600 | – | – | – | – | – | – | 1 |",
    ]


def test_every_contestant_is_there_and_knows_its_arguments() -> None:
    modules = (grpo_step, policy_loss, template_evaluation, default_job)
    rows = [row for module in modules for row in module.ROWS] + [*rollouts.rows("python"), *grading.rows(None)]
    for contestant in (contestant for row in rows for contestant in row.contestants):
        module, function = contestant.target.split(":")
        inspect.signature(getattr(importlib.import_module(module), function)).bind("watch", **contestant.arguments)
