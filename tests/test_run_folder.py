"""A run finds its folder again, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from p2o.config import Config
from p2o.run_folder import RunFolderError, open_run_folder, run_folder, sole_user


def test_a_new_folder_gets_the_configuration(configure: Callable[..., Config]) -> None:
    run_dir = open_run_folder(configure("+experiment=grpo", "seed=3"))
    written = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (written["name"], written["seed"], written["gepa"]["variant"]) == ("grpo", 3, "off")


def test_the_same_configuration_continues(configure: Callable[..., Config]) -> None:
    first = open_run_folder(configure("seed=3"))
    (first / "summary.json").write_text("{}")
    assert open_run_folder(configure("seed=3", "trainer.threads=1", "trainer.progress=false")) == first


def test_another_configuration_is_refused_with_its_keys(configure: Callable[..., Config]) -> None:
    (open_run_folder(configure()) / "summary.json").write_text("{}")
    with pytest.raises(RunFolderError) as caught:
        open_run_folder(configure("policy.rollouts=4", "seed=1", "tuning=full"))
    lines = str(caught.value).splitlines()
    assert "  policy.rollouts: 6 there, 4 asked for" in lines
    assert "  seed: 0 there, 1 asked for" in lines
    assert "  tuning.kind: 'lora' there, 'full' asked for" in lines


def test_where_nothing_was_done_the_configuration_may_be_mended(configure: Callable[..., Config]) -> None:
    (open_run_folder(configure("model=hub", "model.path=/misspelt")) / "log.txt").write_text("no such model")
    run_dir = open_run_folder(configure("seed=3"))
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["seed"] == 3


def test_a_configuration_is_not_replaced_under_the_process_that_uses_it(configure: Callable[..., Config]) -> None:
    with run_folder(configure("seed=3")) as run_dir:
        with pytest.raises(RunFolderError, match="in use"), run_folder(configure("seed=4")):
            pass
        assert yaml.safe_load((run_dir / "config.yaml").read_text())["seed"] == 3


def test_a_file_is_no_folder(configure: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file"), run_folder(configure()):
        pass


def test_resume_false_refuses_a_folder_with_anything_in_it(configure: Callable[..., Config]) -> None:
    open_run_folder(configure("resume=false"))
    with pytest.raises(RunFolderError, match="not empty and resume=false"):
        open_run_folder(configure("resume=false"))


def test_a_foreign_folder_is_left_alone(configure: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"no config\.yaml"):
        open_run_folder(configure())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_launch_that_died_before_it_began_leaves_a_folder_that_can_be_used(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.4711.tmp").write_text("name: p2")
    (tmp_path / "run" / "launch.log").write_text("a sweep's record")
    with run_folder(configure("resume=false")) as run_dir:
        assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "launch.log"]


@pytest.mark.parametrize(
    "override", ["profile=true", "callbacks=none", "logger=off", "reward.workers=3", "trainer.progress=false"]
)
def test_what_changes_nothing_that_is_computed_may_change(override: str, configure: Callable[..., Config]) -> None:
    first = open_run_folder(configure())
    (first / "summary.json").write_text("{}")
    assert open_run_folder(configure(override)) == first


def test_other_machines_may_continue(configure: Callable[..., Config]) -> None:
    first = open_run_folder(configure())
    assert open_run_folder(configure("trainer.threads=7", "trainer.accelerator=gpu")) == first


def test_an_engine_that_failed_may_be_given_other_means(configure: Callable[..., Config]) -> None:
    """After a memory that was too small, or servers that are gone, the run continues."""
    first = open_run_folder(configure("rollout=vllm"))
    (first / "summary.json").write_text("{}")
    means = ("rollout.max_model_len=2048", "rollout.gpu_memory_utilization=0.3", "rollout.kv_cache_gib=2")
    assert open_run_folder(configure("rollout=vllm", *means)) == first
    with pytest.raises(RunFolderError, match=r"rollout\.temperature"):
        open_run_folder(configure("rollout=vllm", "rollout.temperature=0.7"))


def test_a_folder_has_one_user_at_a_time(configure: Callable[..., Config]) -> None:
    run_dir = open_run_folder(configure())
    with sole_user(run_dir), pytest.raises(RunFolderError, match="in use by another process"), sole_user(run_dir):
        pass
    with sole_user(run_dir):
        pass


@pytest.mark.parametrize("content", [b"name: [", b"\xff\xfe", b"just text", b""])
def test_a_configuration_that_cannot_be_read_is_named(content: bytes, configure: Callable[..., Config]) -> None:
    run_dir = open_run_folder(configure())
    (run_dir / "config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.yaml (cannot be read|is not a configuration)"):
        open_run_folder(configure())
