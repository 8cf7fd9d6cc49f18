from __future__ import annotations

import io
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from player import build_scored
from rich.console import Console

from p2o.algorithm.advantages import GroupAdvantages
from p2o.algorithm.hard_set import HardSet
from p2o.algorithm.module import Alternation
from p2o.algorithm.state import RunState
from p2o.callbacks.progress import Progress
from p2o.evolution.monitor import EvolutionProgress
from p2o.types import Assignment, Phase

TRAINER: Any = None


def at(step: int) -> Any:
    """A module whose run has done ``step`` rounds."""
    return SimpleNamespace(state=RunState(step=step))


def round_done(progress: Progress, step: int, groups: Sequence[GroupAdvantages]) -> None:
    outputs = {"groups": groups, "metrics": {"grad_norm": 0.5}}
    progress.on_train_batch_end(TRAINER, at(step), outputs)


def run(console: Console) -> str:
    progress = Progress(3, console=console)
    progress.on_fit_start(TRAINER, at(0))
    for step in (1, 2, 3):
        progress.on_rollout_end(TRAINER, at(step), Phase.POLICY, 4, 6)
        progress.on_rollout_end(TRAINER, at(step), Phase.POLICY, 6, 6)
        progress.on_micro_batch_end(TRAINER, at(step), 1, 2)
        progress._bars.refresh()
        round_done(progress, step, [build_scored("q", "cw"), build_scored("r", "ww")])
    progress.on_evolution_progress(TRAINER, at(3), EvolutionProgress(1, 20, 40, 0.5, 3))
    progress.on_rollout_end(TRAINER, at(3), Phase.EVOLUTION, 5, 9)
    progress.on_evolution_progress(TRAINER, at(3), EvolutionProgress(2, 30, 40, 0.75, 4))
    progress._bars.refresh()
    progress.on_alternation_end(TRAINER, at(3), Alternation(HardSet(("q",), 1), None, Assignment(), "why"))
    progress.on_fit_end(TRAINER, at(3))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_without_a_terminal_each_round_is_one_plain_line() -> None:
    lines = run(Console(file=io.StringIO(), width=60)).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"round 1/3  reward 0\.25  signal 1/2  grad 0\.5  \d+:\d\d left", lines[0])
    assert lines[3] == "epoch 0  reward 0.00  hard 1 (1 all wrong)  [why]"


def test_on_a_terminal_the_bars_show_run_part_and_note() -> None:
    text = run(Console(file=io.StringIO(), width=120, force_terminal=True))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"run .* 2/3", plain)
    assert re.search(r"update .* 1/2", plain)
    assert re.search(r"evolution .* 30/40 .*best dev 0\.75", plain)
    assert "signal 1/2" in plain
    assert "hard 1 (1 all wrong)" in plain


def test_a_part_that_ended_no_longer_shows() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = Progress(2, console=console)
    progress.on_fit_start(TRAINER, at(0))
    progress.on_rollout_end(TRAINER, at(0), Phase.POLICY, 1, 6)
    round_done(progress, 1, [build_scored("q", "cw")])
    assert [task.description for task in progress._bars.tasks if task.visible] == ["run"]
    progress.on_exception(TRAINER, at(1), KeyboardInterrupt())


def test_a_resumed_run_judges_the_time_left_by_its_own_rounds() -> None:
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(1000, console=console)
    progress._started -= 1000
    round_done(progress, 901, [build_scored("q", "cw")])
    progress._started -= 1000
    round_done(progress, 902, [build_scored("q", "cw")])
    assert isinstance(console.file, io.StringIO)
    left = [line.rpartition("  ")[2] for line in console.file.getvalue().splitlines()]
    minutes = [int(text.partition(":")[0]) for text in left]
    assert minutes == [pytest.approx(99_000 // 60, rel=0.01), pytest.approx(98_000 // 60, rel=0.01)]
