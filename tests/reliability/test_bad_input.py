"""Input that is bad in every way: each has an outcome that one can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lives import JOB, Driver, Life

from p2o.config import Config, ConfigError

pytestmark = pytest.mark.timeout(600)

OWN_DATA = ("data=jsonl", "data.val_size=4", "data.train_size=null")


def questions(count: int) -> list[dict[str, Any]]:
    return [{"problem": f"What is {i} + {i}?", "answer": str(2 * i), "id": f"q{i}"} for i in range(count)]


def write(path: Path, rows: list[dict[str, Any]], *more: bytes, start: bytes = b"") -> str:
    path.write_bytes(start + b"\n".join([*(json.dumps(row).encode() for row in rows), *more]))
    return f"data.path={path}"


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def plain(life: Life) -> str:
    return " ".join(life.said.split())


def copy_of_the_model(run_dir: Path, folder: Path) -> Path:
    config = json.loads((run_dir / "model" / "adapter_config.json").read_text())
    return Path(shutil.copytree(Path(config["base_model_name_or_path"]).expanduser(), folder))


def test_a_file_with_every_fault_trains_on_the_rest_and_says_what_is_left_out(driver: Driver, tmp_path: Path) -> None:
    """Ids that are paths among them: no file is ever named after an id, so nothing leaves the run's folder."""
    evil = ["../../outside", "/tmp/p2o-outside", "a/b", "x" * 5000, "nul\x00", "..", "-rf", "$(touch outside)"]
    rows = [{**row, "id": name} for row, name in zip(questions(8), evil, strict=True)] + questions(16)[8:]
    faults = [
        b'{"problem": "cut off',
        b"[1]",
        json.dumps({"problem": 3, "answer": "3", "id": "a"}).encode(),
        json.dumps({"problem": "twice?", "answer": "3", "id": "q9"}).encode(),
        json.dumps({"problem": "long " + "x" * 10_000_000, "answer": "1", "id": "long"}).encode(),
        b'{"problem": "\xff", "answer": "1", "id": "b"}',
    ]
    folder = tmp_path / "here"
    folder.mkdir()
    path = write(folder / "mine.jsonl", rows, *faults, start=b"\xef\xbb\xbf")
    life = driver.live(folder / "run", *OWN_DATA, path, "data.columns.id=id", "data.train_size=10")
    assert life.code == 0, life.said
    log = (folder / "run" / "log.txt").read_text()
    for fault in ("line that is not JSON", "line that is not an object", "question that is not text", "id seen before"):
        assert f"left out, {fault}" in log
    assert "jsonl: 17 of 22 rows are usable" in log
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    assert not [name for name in names if "outside" in name or "xxx" in name or "-rf" in name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert not Path("/tmp/p2o-outside").exists()


def test_questions_that_change_under_a_run_are_refused(driver: Driver, tmp_path: Path) -> None:
    run_dir, path = tmp_path / "run", tmp_path / "mine.jsonl"
    data = (*OWN_DATA, write(path, questions(12)))
    assert driver.live(run_dir, *data, strike="a micro-batch", step=1).code == -9
    write(path, [{**row, "answer": "0"} if row["id"] == "q3" else row for row in questions(12)])
    life = driver.live(run_dir, *data)
    assert life.code == 2
    assert "the questions have changed since the run in" in plain(life)
    assert "restore the data, or give another run_dir" in plain(life)
    write(path, questions(12))
    assert driver.live(run_dir, *data).code == 0


def test_a_question_longer_than_the_context_is_left_out(driver: Driver, tmp_path: Path) -> None:
    rows = [*questions(11), {"problem": "Why? " * 2000, "answer": "1", "id": "long"}]
    life = driver.live(tmp_path / "run", *OWN_DATA, write(tmp_path / "mine.jsonl", rows), "data.seed=1", "gepa=off")
    assert life.code == 0, life.said
    assert "questions are longer than" in plain(life)


def test_a_question_longer_than_the_window_of_the_models_attention_is_left_out(
    driver: Driver, whole: Path, tmp_path: Path
) -> None:
    """It would fit rollout.max_prompt_tokens and the positions that the model has."""
    folder = copy_of_the_model(whole, tmp_path / "model")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "sliding_window": 320}))
    rows = [*questions(11), {"problem": "Why? " * 40, "answer": "1", "id": "long"}]
    data = (*OWN_DATA, write(tmp_path / "mine.jsonl", rows), "data.seed=1", "gepa=off")
    life = driver.live(tmp_path / "run", *data, "model=hub", f"model.path={folder}", "model.dtype=float32")
    assert life.code == 0, life.said
    assert "questions are longer than the model's 320 tokens - rollout.max_new_tokens" in plain(life)


def test_no_room_for_any_prompt_is_refused(driver: Driver, tmp_path: Path) -> None:
    life = driver.live(tmp_path / "run", "rollout.max_new_tokens=1000000")
    assert life.code == 2
    assert "rollout.max_new_tokens" in plain(life)
    assert "change these lengths" in plain(life)


def test_an_empty_hard_set_makes_the_next_epoch_plain(driver: Driver, tmp_path: Path) -> None:
    life = driver.live(tmp_path / "run", "reward.function=always.right")
    assert life.code == 0, life.said
    epochs = summary(tmp_path / "run")["epochs"]
    assert [epoch["hard"] for epoch in epochs] == [0, 0]
    assert epochs[0]["note"] == "0 hard questions are fewer than hard_set.min_size=2"


def test_one_question_that_is_hard_trains_without_templates(driver: Driver, tmp_path: Path) -> None:
    one = ("data.train_size=1", "data.val_size=1", "hard_set.min_size=1", "reward.function=always.wrong")
    life = driver.live(tmp_path / "run", *one)
    assert life.code == 0, life.said
    told = summary(tmp_path / "run")
    assert told["status"] == "completed"
    assert [(epoch["hard"], epoch["templates"]) for epoch in told["epochs"]] == [(1, 0), (1, 0)]
    pool = json.loads((tmp_path / "run" / "evolution" / "epoch-000" / "pool.json").read_text())
    assert pool["stop_reason"] == "too_few_questions"


def test_a_tokenizer_without_a_chat_template_is_refused(driver: Driver, whole: Path, tmp_path: Path) -> None:
    folder = copy_of_the_model(whole, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    life = driver.live(tmp_path / "run", "model=hub", f"model.path={folder}")
    assert life.code == 2
    assert "has no chat template: choose an instruction-tuned model" in plain(life)


def test_a_group_of_one_is_refused(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.rollouts=1 must be at least 2"):
        configure(*JOB, "policy.rollouts=1", "hard_set.tau=1", "hard_set=official")
