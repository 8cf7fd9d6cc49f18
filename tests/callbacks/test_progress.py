from __future__ import annotations

import io
import re

from rich.console import Console

from p2o.algorithm.state import RunState
from p2o.callbacks.progress import Progress
from p2o.evolution.gepa_phase import EvolutionProgress


def run(console: Console, *, enabled: bool = True) -> str:
    with Progress(3, enabled=enabled, console=console) as progress:
        for step in (1, 2, 3):
            rollouts = progress.rollouts(6)
            rollouts(4)
            rollouts(6)
            progress.update()(1, 2)
            progress._bars.refresh()
            progress.round_done(RunState(step=step), {"rollout/reward": step / 10, "policy/loss": 0.0})
        evolution = progress.evolution()
        evolution(EvolutionProgress(1, 20, 40, 0.5, 3))
        progress.rollouts(9)(5)
        evolution(EvolutionProgress(2, 30, 40, 0.75, 4))
        progress._bars.refresh()
        progress.epoch_done("epoch 0: accuracy 0.50")
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_without_a_terminal_each_round_is_one_plain_line() -> None:
    lines = run(Console(file=io.StringIO(), width=60)).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"round 1/3  reward 0\.10  0:0\d left", lines[0])
    assert lines[3] == "epoch 0: accuracy 0.50"


def test_on_a_terminal_the_bars_show_run_part_and_note() -> None:
    text = run(Console(file=io.StringIO(), width=120, force_terminal=True))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"run .* 2/3", plain)
    assert re.search(r"update .* 1/2", plain)
    assert re.search(r"evolution .* 30/40 .*best dev 0\.75\s+rollouts .* 5/9", plain)
    assert "reward 0.20" in plain
    assert "epoch 0: accuracy 0.50" in plain


def test_a_part_that_ended_no_longer_shows() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Progress(2, console=console) as progress:
        late = progress.rollouts(6)
        progress.round_done(RunState(step=1), {})
        late(1)
        assert [task.description for task in progress._bars.tasks if task.visible] == ["run"]


def test_disabled_is_silent() -> None:
    assert run(Console(file=io.StringIO()), enabled=False) == ""
    assert run(Console(file=io.StringIO(), force_terminal=True), enabled=False) == ""


def test_a_resumed_run_judges_the_time_left_by_its_own_rounds() -> None:
    console = Console(file=io.StringIO(), width=60)
    with Progress(1000, console=console) as progress:
        progress._started -= 10
        progress.round_done(RunState(step=901), {})
        progress._started -= 10
        progress.round_done(RunState(step=902), {})
    assert isinstance(console.file, io.StringIO)
    first, second = console.file.getvalue().splitlines()
    assert first == "round 901/1000    16:30 left"
    assert second == "round 902/1000    16:20 left"
