"""Three hundred rounds take no more of anything at their end than at their beginning."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import median

import pytest
from lives import Driver

ROUNDS = 300


@pytest.mark.soak
@pytest.mark.timeout(14400)
def test_a_long_run_stays_flat(driver: Driver, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.jsonl"
    life = driver.live(tmp_path / "run", "trainer.epochs=100", sizes=str(sizes))
    assert life.code == 0, life.said
    rows = [json.loads(line) for line in sizes.read_text().splitlines()]
    assert len(rows) == ROUNDS
    seconds = [later[0] - earlier[0] for earlier, later in itertools.pairwise(rows)]
    early, late = slice(30, 90), slice(-60, None)
    figures = {
        name: (median(row[column] for row in rows[early]), median(row[column] for row in rows[late]))
        for column, name in enumerate(("MiB", "files", "threads", "processes"), start=1)
    }
    figures["seconds a round"] = (median(seconds[early]), median(seconds[late]))
    print("rounds 31-90, rounds 241-300:", figures)
    assert figures["MiB"][1] < figures["MiB"][0] * 1.03
    assert figures["files"][1] <= figures["files"][0]
    assert figures["threads"][1] <= figures["threads"][0]
    assert figures["processes"][1] <= figures["processes"][0]
    assert figures["seconds a round"][1] < figures["seconds a round"][0] * 1.5
