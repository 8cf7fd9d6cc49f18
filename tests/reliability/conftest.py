"""The process that forks lives, and the run that nobody touched: made once for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import Driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("lives"))
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job that nobody touched."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    life = driver.live(run_dir)
    assert life.code == 0, life.said
    return run_dir
