"""The process that forks lives, and the run that nobody touched: made once for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lives import Driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("lives"))
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job that nobody touched, with the first seed under which there is something to lose.

    What a random model says is luck, and on another processor it may say something else.
    """
    for driver.seed in range(1, 9):
        run_dir = tmp_path_factory.mktemp("whole") / "run"
        life = driver.live(run_dir)
        assert life.code == 0, life.said
        rows = pq.read_table(run_dir / "rollouts" / "epoch-001.parquet", columns=["template_id"]).to_pylist()
        if any(row["template_id"] != "plain" for row in rows):
            return run_dir
    pytest.fail("no seed's evolution found a template that was used")
