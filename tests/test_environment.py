from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from rich.console import Console

from p2o.environment import record_environment
from p2o.logs import log_to

KEY = "sk-verysecret-0123456789"


def test_the_environment_file_names_versions_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    record_environment(tmp_path)
    text = (tmp_path / "environment.json").read_text()
    value = json.loads(text)
    assert value["packages"]["torch"] == torch.__version__
    assert value["threads"] == torch.get_num_threads()
    assert value["cpu_count"] >= 1
    assert value["python"].startswith("3.")
    assert KEY not in text


def test_messages_reach_file_and_console_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("SHORT_TOKEN", "true")
    screen = io.StringIO()
    logger = logging.getLogger("p2o.reporting.test")
    with log_to(tmp_path / "log.txt", Console(file=screen, width=200)):
        logger.info("calling with %s: it is true", KEY)
        try:
            raise ValueError(f"refused key {KEY}")
        except ValueError:
            logger.exception("it failed")
        logger.debug("not of interest")
    logger.info("after the run")
    for text in ((tmp_path / "log.txt").read_text(), screen.getvalue()):
        assert KEY not in text
        assert "calling with [MY_API_KEY]: it is true" in text
        assert "refused key [MY_API_KEY]" in text
        assert "not of interest" not in text
        assert "after the run" not in text


def test_a_resumed_run_appends_to_its_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with log_to(tmp_path / "log.txt", Console(file=io.StringIO())):
            logging.getLogger("p2o").warning(word)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]
