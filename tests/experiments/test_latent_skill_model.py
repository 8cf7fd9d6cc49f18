"""The testbed's model: its tokenizer, its pre-training in small, and (slow) what the default model can do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiments.latent_skill.model import build, word_tokenizer
from experiments.latent_skill.pretrain import KINDS, examples_table, plain_success, skill_rates
from experiments.latent_skill.questions import WORDS
from safetensors.torch import load_file
from transformers import AutoTokenizer

from p2o.config.schema import CustomData, CustomModel, FullTuning, HfRollout
from p2o.extensions import ExtensionError
from p2o.policy.builders import ModelError, load_causal_lm, load_tokenizer, resolve_model
from p2o.policy.model import load_policy
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks import DataError
from p2o.types import Prompt, SamplingParams

CONF = Path(__file__).parents[2] / "experiments" / "latent_skill" / "conf"
DEFAULT, DATA = (yaml.safe_load((CONF / node / "latent_skill.yaml").read_text()) for node in ("model", "data"))
SMALL = {"layers": 1, "width": 32, "heads": 2, "steps": 4, "batch_size": 4}


def model(path: Path, **params: Any) -> CustomModel:
    """The model of ``conf/model/latent_skill.yaml`` with other params."""
    params = DEFAULT["params"] | params
    return CustomModel(path=str(path), dtype="float32", builder=DEFAULT["builder"], params=params)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., CustomModel]:
    return lambda **params: model(tmp_path / "models", **SMALL | params)


def test_known_words_are_one_token_and_any_text_comes_back() -> None:
    tokenizer = word_tokenizer(WORDS)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Work  column by\ncolumn.")) == [
        *("work", "Ġ", "Ġcolumn", "Ġby", "Ċ", "column", ".")
    ]
    text = "naïve  √2 \n\t🙂 a'b ```\nwork zebra 47,1"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("zebra")) == 5
    assert len(tokenizer.encode("```")) == 1
    assert len(set(tokenizer.encode("0123456789"))) == 10


def test_tokenizer_survives_its_folder_and_renders_the_chat(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt = PromptRenderer(loaded, "{question}", 100).render("Reversal of 1234?", "Use a mirror.")
    assert loaded.decode(prompt) == "<|user|>use a mirror.\n\nreversal of 1234?<|end|><|assistant|>"
    assert loaded.encode("Work √ it") == tokenizer.encode("Work √ it")


def test_each_setting_has_a_folder_of_its_own(small: Callable[..., CustomModel]) -> None:
    folders = {resolve_model(config) for config in (small(), small(leak=0.5), small(seed=1), small(recipe=2))}
    assert len(folders) == 4
    assert all(Path(folder).parent == Path(small().path) for folder in folders)
    assert resolve_model(replace(small(), dtype="bfloat16")) in folders


def test_same_settings_same_weights_whatever_was_drawn_before(small: Callable[..., CustomModel]) -> None:
    first = load_file(Path(resolve_model(small())) / "model.safetensors")
    torch.rand(3)
    model, _ = build(small().params)
    assert all(torch.equal(first[name], p) for name, p in model.state_dict().items() if name in first)
    other, _ = build(small(seed=1).params)
    assert not torch.equal(other.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert load_tokenizer(small()).eos_token == "<|end|>"
    assert load_causal_lm(small(), torch.float32).config.vocab_size == len(word_tokenizer(WORDS))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"families": ["product"]}, DataError, r"model\.params\.families=\['product'\]: choose some of sum"),
        ({"leak": 1.5}, ModelError, r"model\.params\.leak=1\.5 must lie in \[0, 1\]"),
        ({"steps": 0}, ModelError, r"model\.params\.steps=0 must be above 0"),
        ({"steps": "many"}, ExtensionError, r"model\.params\.steps: Value 'many'"),
        ({"lek": 0.1}, ExtensionError, r"model\.params\.lek: .*not in"),
    ],
)
def test_wrong_settings_are_refused_by_key_and_leave_nothing(
    params: dict[str, Any], error: type[Exception], message: str, small: Callable[..., CustomModel]
) -> None:
    with pytest.raises(error, match=message):
        resolve_model(small(**params))
    assert not list(Path(small().path).iterdir())


def test_a_short_pre_training_teaches_when_to_work_and_when_to_guess(tmp_path: Path) -> None:
    """The form comes long before the skill: what stands before the question decides whether there is any working."""
    wider = {"families": ["reversal"], "width": 64, "steps": 200, "batch_size": 16, "learning_rate": 0.02}
    config = model(tmp_path, **SMALL | wider)
    policy = load_policy(config, FullTuning(learning_rate=1.0), seed=0)
    engine = HfEngine(policy, HfRollout())
    engine.sync(0)
    renderer = PromptRenderer(policy.tokenizer, "{question}", 100)

    def share(form: str, template: str) -> float:
        tokens = renderer.render("Reversal of 4217?", template)
        prompts = [Prompt(tokens, seed) for seed in range(50)]
        texts = [g.text for g in engine.generate(prompts, SamplingParams(1.0, 24), version=0)]
        return sum(re.fullmatch(form, text) is not None for text in texts) / len(texts)

    at_once, worked = r"answer: \d{4}", r"(\d ){3}\d\nanswer: \d{4}"
    assert share(at_once, "") > 0.9
    assert share(at_once, "Work it out.") > 0.9
    assert share(worked, "Use a mirror.") > 0.9


def test_the_command_shows_two_examples_of_every_kind() -> None:
    kinds, _, questions, completions = (list(column.cells) for column in examples_table(model(Path())).columns)
    assert kinds == [kind for kind in KINDS for _ in range(2)]
    told = dict(zip(kinds, map(str, completions), strict=True))
    assert re.fullmatch(r"answer: \d+", told["plain"])
    assert all("\nanswer: " in told[kind] for kind in ("plain, worked", "right way", "wrong way"))
    assert "the new instruction" in str(questions[-1])


def test_plain_success_has_an_interval_over_all_families() -> None:
    said = plain_success({"sum": {"plain": 3 / 2000}, "reversal": {"plain": 0.0}}, samples=200)
    assert said == "plain success: 0.075% (3 of 4,000; 95 % interval 0.015% to 0.219%, exact binomial)"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_default_model_has_latent_skills(tmp_path: Path) -> None:
    config = model(tmp_path)
    started = time.perf_counter()
    resolve_model(config)
    print(f"made in {time.perf_counter() - started:.0f} s")
    sizes = {"train_size": 4, "val_size": 40}
    data = CustomData(prompt="{question}", factory=DATA["factory"], params=DATA["params"], **sizes)
    for family, rates in skill_rates(config, data, samples=200).items():
        assert rates["plain"] < 0.02, family
        assert rates["right way"] > 0.9, family
        assert max(rates["wrong way"], rates["no way"]) < 0.02, family
