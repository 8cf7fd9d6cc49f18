"""A hub that is not there is asked once, and said so in a line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

PROGRAM = """
import logging
from p2o.config.schema import HubData, ModelConfig
from p2o.policy.builders import ModelError, load_tokenizer
from p2o.tasks import DataError
from p2o.tasks.hub_data import open_dataset
from p2o.logs import quiet_libraries

logging.basicConfig(format="%(message)s")
quiet_libraries()
model, data = ModelConfig(path="nobody/model"), HubData(dataset="nobody/data")
for load, what in ((load_tokenizer, model), (open_dataset, data)):
    try:
        load(what)
    except (DataError, ModelError) as error:
        print(error)
"""


@pytest.fixture
def hangs_up() -> Iterator[tuple[str, list[int]]]:
    """An address where every call is taken and put down, and the calls so far."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                calls.append(1)
                connection.close()

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls


def test_it_is_asked_once(hangs_up: tuple[str, list[int]], tmp_path: object) -> None:
    address, calls = hangs_up
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert len(calls) == 1
    assert ran.stderr.count("cannot be reached") == 1
    assert "Retrying" not in ran.stderr
    model, data = ran.stdout.splitlines()
    assert "give model.path=FOLDER" in model
    assert "use a file: data=jsonl" in data
