"""Models as small as these only wait for a second thread. `make test-portable` asks for it all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def threads_of_the_run() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("P2O_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(threads)
