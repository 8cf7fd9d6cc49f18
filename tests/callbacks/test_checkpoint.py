"""A checkpoint is whole or not there, and one that is damaged is named and passed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from p2o.algorithm.hard_set import Record
from p2o.algorithm.state import RunState, Stage
from p2o.callbacks.checkpoint import Checkpoint, CheckpointError, CheckpointStore, read_checkpoint
from p2o.types import Assignment, Phase, Template


def state(step: int) -> RunState:
    template = Template("Think.", parents=("plain",), epoch=1, dev_score=0.5, covers=frozenset({"q1"}))
    value = RunState(stage=Stage.PROMPT, epoch=1, round=2, step=step, policy_version=step)
    value.records["q1"] = Record(plain_correct=1, plain_count=1, templated_correct=2, templated_count=5)
    value.assignment = Assignment({template.id: template}, {"q1": ("plain", template.id)})
    value.front = ["Think."]
    value.skipped_in_a_row, value.micro_batch_tokens = 2, 512
    value.epochs = [{"epoch": 0, "step": 1, "train_reward": 0.25, "note": "why"}]
    value.validation.history = [(0, 0.125), (step, 0.5)]
    value.ledger.add(Phase.POLICY, generated_tokens=7, seconds=0.5)
    return value


def checkpoint(step: int) -> Checkpoint:
    weight = torch.nn.Parameter(torch.arange(4.0) + step)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(4)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return Checkpoint({"w": weight}, optimizer.state_dict(), schedule.state_dict(), state(step))


def test_the_state_survives_json() -> None:
    assert RunState.from_json(state(5).to_json()).to_json() == state(5).to_json()
    loaded = RunState.from_json(state(5).to_json())
    assert loaded.assignment == state(5).assignment
    assert (loaded.skipped_in_a_row, loaded.micro_batch_tokens) == (2, 512)


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    assert store.load() is None
    saved = checkpoint(5)
    store.save(saved)
    loaded = store.load()
    assert loaded is not None
    torch.testing.assert_close(loaded.trainable["w"], saved.trainable["w"].detach(), rtol=0, atol=0)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(loaded.optimizer["state"][0][key], saved.optimizer["state"][0][key])
    assert loaded.state.to_json() == saved.state.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"], "nothing temporary is left"


def test_the_best_stays_when_the_last_moves_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    store.mark_best()
    store.save(checkpoint(2))
    assert (read_checkpoint(store.best).state.step, read_checkpoint(store.last).state.step) == (1, 2)
    assert read_checkpoint(store.previous).state.step == 1


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_found_and_the_previous_used(
    where: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    content = bytearray(store.last.read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    store.last.write_bytes(bytes(content))
    loaded = store.load()
    assert loaded is not None
    if loaded.state.step == 2:  # the bit lay in padding between records, if nothing is stored
        assert loaded.state.to_json() == state(2).to_json()
        assert torch.equal(loaded.trainable["w"], checkpoint(2).trainable["w"])
    else:
        assert str(store.last) in caplog.text


def test_every_bit_that_holds_something_is_guarded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(2))
    content, expected = store.last.read_bytes(), read_checkpoint(store.last)
    unnoticed = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x04
        store.last.write_bytes(bytes(damaged))
        try:
            found = read_checkpoint(store.last)
        except CheckpointError:
            continue
        unnoticed += 1
        assert found.state.to_json() == expected.state.to_json()
        assert torch.equal(found.trainable["w"], expected.trainable["w"])
        assert str(found.optimizer) == str(expected.optimizer)
    assert unnoticed < len(content) / 7, "damage is noticed at all"


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_a_truncated_file_is_named(kept: int, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    store.last.write_bytes(store.last.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        store.load()


def test_a_foreign_file_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"something": "else"}, path)
    with pytest.raises(CheckpointError, match="not a p2o checkpoint"):
        read_checkpoint(path)
    torch.save({"format": 1, "state": _Bomb()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    assert not _Bomb.went_off


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "another run's":
            CheckpointStore(path.parent / "other", "another run").save(checkpoint(7))
            shutil.move(path.parent / "other" / "last.ckpt", path)
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            where = content.index(b"policy_version") + 2
            path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
        case "foreign":
            torch.save({"something": "else"}, path)
        case "missing":
            path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "foreign", "another run's", "missing"])
def test_what_is_damaged_is_named_and_never_displaces_the_one_before_it(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    damage(store.last, how)
    loaded = store.load()
    assert loaded is not None
    assert loaded.state.step == 1
    assert f"{store.last} " in caplog.text
    assert "continuing from previous.ckpt" in caplog.text
    assert (tmp_path / "last.ckpt.damaged").exists() == (how != "missing")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the next write never ends: both names hold the good one
        patch.setattr(torch, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            store.save(checkpoint(3))
    assert [read_checkpoint(path).state.step for path in (store.last, store.previous)] == [1, 1]


def test_one_that_was_written_without_the_name_of_its_run_is_taken(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    content = torch.load(store.last, weights_only=True)
    del content["run"]
    torch.save(content, store.last)
    loaded = store.load()
    assert loaded is not None
    assert loaded.state.step == 1


def test_a_first_checkpoint_that_is_damaged_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this run")
    store.save(checkpoint(1))
    damage(store.last, "flipped")
    before = store.last.read_bytes()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .*start anew with another run_dir"):
        store.load()
    assert store.last.read_bytes() == before


class _Bomb:
    """Unpickling it would run code."""

    went_off = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (_Bomb, "went_off", True)
