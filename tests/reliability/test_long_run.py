"""Three hundred rounds take no more of anything at their end than at their beginning.

The few rounds of every day count what a leak would leave; bytes and seconds, which are the machine's too, the many.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import median

import pytest
from lives import Driver

COUNTED = ("files", "threads", "processes", "tensors")


@pytest.mark.parametrize(
    ("rounds", "early", "late"),
    [
        pytest.param(30, slice(6, 15), slice(-9, None), id="few"),
        pytest.param(300, slice(30, 90), slice(-60, None), id="many", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(14400)
def test_a_long_run_stays_flat(rounds: int, early: slice, late: slice, driver: Driver, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.jsonl"
    life = driver.live(tmp_path / "run", f"trainer.epochs={rounds // 3}", sizes=str(sizes))
    assert life.code == 0, life.said
    rows = [json.loads(line) for line in sizes.read_text().splitlines()]
    assert len(rows) == rounds
    seconds = [later[0] - earlier[0] for earlier, later in itertools.pairwise(rows)]
    figures = {
        name: (median(row[column] for row in rows[early]), median(row[column] for row in rows[late]))
        for column, name in enumerate(("MiB", *COUNTED), start=1)
    }
    figures["seconds a round"] = (median(seconds[early]), median(seconds[late]))
    print("early, late:", figures, f"{rows[-1][0]:.0f} s")
    for name in COUNTED:
        assert figures[name][1] <= figures[name][0], name
    if rounds >= 300:
        assert figures["MiB"][1] < figures["MiB"][0] * 1.03
        assert figures["seconds a round"][1] < figures["seconds a round"][0] * 1.5
