"""Killed at any moment and started again by the same command, a run ends as if nobody had touched it."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lives import Driver, Life
from points import POINTS
from story import differing, story

pytestmark = pytest.mark.timeout(900)

COURSE: list[dict[str, Any]] = [
    # the first validation and the first checkpoint
    {"strike": "a step of decoding", "step": 0, "stage": "start", "call": 5},
    {"strike": "validated", "step": 0, "stage": "start"},
    {"strike": "a checkpoint half written", "step": 0},
    {"strike": "the best not yet marked", "step": 0},
    # a round
    {"strike": "an answer handed to the grader", "step": 0, "stage": "policy", "call": 9},
    {"strike": "an answer graded", "step": 0, "stage": "policy", "call": 4},
    {"strike": "a micro-batch", "step": 0},
    {"strike": "after the optimizer's step", "step": 0},
    {"strike": "rollouts half logged", "step": 1},
    {"strike": "metrics half logged", "step": 1},
    {"strike": "the round reported", "step": 1},
    {"strike": "the engine synced", "step": 1, "stage": "policy"},
    {"strike": "a checkpoint not yet renamed", "step": 1},
    {"strike": "a checkpoint renamed", "step": 1},
    # the prompt phase
    {"strike": "validated", "step": 3, "stage": "prompt"},
    {"strike": "templates evaluated, not journaled", "step": 3, "call": 2},
    {"strike": "a reflection, not journaled", "step": 3},
    {"strike": "a journal line half written", "step": 3, "call": 2},
    {"strike": "evolved", "step": 3},
    {"strike": "the pool, not the assignment", "step": 3},
    {"strike": "an epoch's table and its lines", "step": 3},
    {"strike": "the epoch reported", "step": 3},
    {"strike": "a checkpoint half written", "step": 3, "stage": "policy"},
    # the second epoch, on templates, and the end
    {"strike": "after the optimizer's step", "step": 4},
    {"strike": "before the export", "stage": "finish"},
    {"strike": "half exported", "stage": "finish"},
    {"strike": "the page written", "stage": "finish"},
    {"strike": "a checkpoint half written", "stage": "done"},
]
"""Points in the order in which an undisturbed run passes them."""


def lived(driver: Driver, run_dir: Path, deaths: list[dict[str, Any]]) -> list[Life]:
    """One process after another in the same folder, each dying its death; the last one ends well."""
    lives = [driver.live(run_dir, **death) for death in deaths]
    for death, life in zip(deaths, lives, strict=True):
        assert life.code == -9 or "cpu" in death, f"{death} was not met: {life.said}"
    lives.append(driver.live(run_dir))
    assert lives[-1].code == 0, lives[-1].said
    return lives


def repeated(lives: list[Life]) -> list[Counter[str]]:
    """For every death, how much work of each kind the next life began once more."""
    begun: set[str] = set()
    again = []
    for life in lives:
        again.append(Counter(line.split()[0] for line in life.work if line in begun))
        begun |= set(life.work)
    return again[1:]


def assert_little_was_lost(lives: list[Life]) -> None:
    """A death costs one round, one validation or one call of an iteration of the evolution."""
    for counts in repeated(lives):
        assert counts.total() <= 2, counts
        assert all(count == 1 for count in counts.values()), counts
        assert set(counts) in ({*()}, {"policy"}, {"policy", "update"}, {"validation"}, {"evolution"}, {"reflection"})


@pytest.mark.parametrize("part", [0, 1])
def test_killed_at_every_point_it_ends_as_if_untouched(part: int, driver: Driver, whole: Path, tmp_path: Path) -> None:
    """It takes longer than 30 s: fifteen processes, each of which resumes a run."""
    deaths = COURSE[part::2]
    lives = lived(driver, tmp_path / "run", deaths)
    assert differing(story(whole), story(tmp_path / "run")) == []
    assert_little_was_lost(lives)


def test_the_job_has_something_to_lose(whole: Path) -> None:
    told = story(whole)
    assert told["summary"]["status"] == "completed"
    assert told["summary"]["ledger"]["reflection_calls"]["total"] >= 2
    assert any(row["template_id"] != "plain" for row in told["epoch-001.parquet"])


@pytest.mark.soak
@pytest.mark.timeout(14400)
def test_a_hundred_deaths(driver: Driver, whole: Path, tmp_path: Path) -> None:
    """Every point by itself, wherever it is met first, and at moments that nobody chose, also while a run resumes."""
    rng = random.Random(0)
    seconds = driver.live(tmp_path / "measured").seconds
    expected, met, number = story(whole), 0, 0
    points = iter([[{"strike": name}] for name in POINTS])
    while met < 100:
        number += 1
        deaths = next(points, None) or [{"cpu": rng.uniform(0.02, 0.6 * seconds)} for _ in range(2)]
        run_dir = tmp_path / str(number)
        lives = lived(driver, run_dir, deaths)
        met += sum(life.code == -9 for life in lives)
        assert differing(expected, story(run_dir)) == [], deaths
        assert_little_was_lost(lives)
        shutil.rmtree(run_dir)
        print(f"{met} deaths met in {number} runs", flush=True)
