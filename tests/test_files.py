from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2o.files import draft_of, remove_drafts, replacing, write_atomic, write_json


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.txt"
    write_atomic(path, "τ = 2\n")
    assert path.read_bytes() == "τ = 2\n".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(path.parent) == ["state.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half of it", "text"])  # type: ignore[list-item]
    assert json.loads(path.read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.json"]


def test_readers_see_the_old_content_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    write_atomic(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary, atomic = tmp_path / "ordinary", tmp_path / "atomic"
    ordinary.write_text("")
    write_atomic(atomic, "")
    assert atomic.stat().st_mode == ordinary.stat().st_mode


def test_half_written_files_and_folders_are_removed_wherever_they_are(tmp_path: Path) -> None:
    model, state = draft_of(tmp_path / "run" / "model"), draft_of(tmp_path / "run" / "epochs" / "state.json")
    (model / "below").mkdir(parents=True)
    draft_of(model / "config.json").write_text("half")
    state.parent.mkdir()
    state.write_text("half")
    kept = tmp_path / "run" / ".hidden.tmp"
    kept.write_text("not ours")
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden.tmp", "epochs", "run"]
