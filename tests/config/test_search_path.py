"""The YAML files of a checkout's experiments are found from its root, and not missed anywhere else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig


def test_the_files_of_an_experiment_in_the_working_directory_are_choices_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose_tree: Callable[..., DictConfig]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compose_tree("reward=exact").reward.kind == "exact", "a folder without experiments is no fault"
    with pytest.raises(MissingConfigException, match="reward/mine"):
        compose_tree("reward=mine")
    for name in ("mine", "other"):
        folder = tmp_path / "experiments" / name / "conf" / "reward"
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(f"kind: exact\ndeadline_s: {len(name)}")
    assert compose_tree("reward=mine").reward.deadline_s == 4
    assert compose_tree("reward=other").reward.deadline_s == 5
