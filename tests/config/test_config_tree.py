"""Every file of conf/ composes, every experiment at every scale is valid, and a typo never passes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf

from p2o.config import Config, ConfigError, load_config, validate
from p2o.config.evaluation import BenchmarkSet
from p2o.config.identity import flat
from p2o.config.suggest import unknown_keys

CONF = Path(__file__).parents[2] / "conf"
APPENDED = {"experiment", "scale"}
NO_GROUPS = {"hydra", "__pycache__", "benchmarks"}
"""``benchmarks`` belongs to another primary configuration."""
FREE = {"callbacks", "logger"}
"""Mappings from any name to a ``_target_``."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NO_GROUPS)
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]
NEEDS_A_VALUE = {
    ("model", "hub"): "model.path",
    ("data", "jsonl"): "data.path",
    ("data", "hub"): "data.dataset",
    ("data", "custom"): "data.factory",
    ("model", "custom"): "model.builder",
}
BUDGET = {"grpo_equal_tokens": ["budget.tokens=1000"]}
"""What these experiments have to be given."""


@pytest.fixture(autouse=True)
def _teacher_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_composes_and_loads(
    group: str, choice: str, compose_tree: Callable[..., DictConfig], tmp_path: Path
) -> None:
    overrides = [f"{'+' if group in APPENDED else ''}{group}={choice}"]
    if (key := NEEDS_A_VALUE.get((group, choice))) is not None:
        value = tmp_path / "mine.jsonl"
        value.write_text("")
        with pytest.raises(ConfigError, match=f"{key} is not set"):
            load_config(compose_tree(*overrides, "reward=math"))
        overrides.append(f"{key}={value}")
    if group == "experiment":
        overrides += BUDGET.get(choice, [])
    if group == "data" and choice != "reasoning_gym":
        overrides.append("reward=math")
    if (group, choice) == ("reward", "function"):
        overrides.append("reward.function=math.isclose")
    if (group, choice) == ("rollout", "vllm_server"):
        overrides.append("rollout.urls=[http://localhost:8000]")
    if (group, choice) == ("hard_set", "official"):
        overrides.append("hard_set.plain_rollouts=0")
    tree = compose_tree(*overrides)
    assert isinstance(load_config(tree), Config)
    if group != "experiment":  # says what it studies, whatever a scale has set before it
        assert repeated(said(group, choice), tree) == []


def said(group: str, choice: str) -> dict[str, Any]:
    """Dotted keys and values of a file of ``conf/``."""
    path = CONF / group / f"{choice}.yaml"
    values = yaml.safe_load(path.read_text()) or {}
    values.pop("defaults", None)
    return flat(values if "@package _global_" in path.read_text() or not values else {group: values})


def repeated(values: Mapping[str, Any], tree: DictConfig) -> list[str]:
    """Keys with the value that the schema gives them anyway, by the schemas of the nodes in ``tree``."""
    return [key for key, value in values.items() if value == schema_default(key, tree)]


def schema_default(key: str, tree: DictConfig) -> Any:
    *nodes, name = key.split(".")
    schema = OmegaConf.get_type(OmegaConf.select(tree, ".".join(nodes)) if nodes else tree)
    fields = {field.name: field for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else {}
    if name not in fields:
        return MISSING  # below a mapping
    field = fields[name]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@pytest.mark.parametrize("name", ["config", "evaluate"])
def test_a_primary_file_repeats_no_default(name: str, tmp_path: Path) -> None:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    with initialize_config_module("p2o.conf", version_base="1.3"):
        tree = compose(name, overrides=[f"run_dir={tmp_path}"])
    own = {key: value for key, value in values.items() if key not in ("defaults", "hydra")}
    assert repeated(flat(own), tree) == []


def test_a_benchmark_repeats_no_default() -> None:
    for path in sorted((CONF / "benchmarks").glob("*.yaml")):
        values = flat(yaml.safe_load(path.read_text()))
        assert repeated(values, OmegaConf.structured(BenchmarkSet)) == [], path.name


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in APPENDED | {"debug"}])
def test_a_default_is_not_one_that_every_choice_replaces(group: str, compose_tree: Callable[..., DictConfig]) -> None:
    files = [said(group, choice) for owner, choice in CHOICES if owner == group]
    tree = compose_tree()
    everywhere = set.intersection(*map(set, files))
    assert {key for key in everywhere if schema_default(key, tree) != MISSING} == set()


def test_a_custom_function_gets_the_whole_response_unless_told(configure: Callable[..., Config]) -> None:
    function = ("reward=function", "reward.function=math.isclose")
    assert configure(*function).reward.extract == ["whole"]
    assert configure(*function, "reward.extract=[boxed]").reward.extract == ["boxed"]


@pytest.mark.parametrize("scale", ["local", "paper", "latent_skill"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid_at_every_scale(
    experiment: str, scale: str, configure: Callable[..., Config]
) -> None:
    budget = BUDGET.get(experiment, [])
    config = configure(f"+experiment={experiment}", f"+scale={scale}", *budget)
    assert (config.name, config.scale) == (experiment, scale)
    swapped = configure(f"+scale={scale}", f"+experiment={experiment}", *budget)
    assert swapped == config, "experiment and scale must not set the same key"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_differs_from_teacher_ref_only_in_what_it_says(
    experiment: str, compose_tree: Callable[..., DictConfig]
) -> None:
    own = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
    overridden = {next(iter(item)).removeprefix("override /") for item in own.get("defaults", [])}
    touched = overridden | (own.keys() - {"defaults"})
    base, tree = compose_tree("+experiment=teacher_ref"), compose_tree(f"+experiment={experiment}")
    assert {key for key in tree if tree[key] != base[key]} <= touched


def test_published_values_at_paper_scale(configure: Callable[..., Config]) -> None:
    config = configure("+experiment=teacher_ref", "+scale=paper")
    assert config.model.path == "Qwen/Qwen3-4B"
    assert config.model.chat_template_kwargs == {"enable_thinking": False}
    assert (config.policy.rollouts, config.rollout.temperature, config.hard_set.tau) == (6, 0.6, 2)
    assert (config.tuning.learning_rate, config.policy.weight_decay, config.policy.warmup_fraction) == (
        1e-6,
        0.01,
        0.05,
    )
    assert (config.policy.questions_per_round, config.policy.updates_per_round) == (128, 2)
    assert (config.rollout.max_prompt_tokens, config.rollout.max_new_tokens) == (4096, 12288)
    assert (config.gepa.dev_size, config.gepa.parents, config.gepa.minibatch, config.gepa.candidates) == (
        300,
        16,
        3,
        72,
    )
    assert (config.distillation.kind, config.distillation.low, config.distillation.high) == ("mask", 0.01, 10.0)
    assert (config.hard_set.min_size, config.data.train_size, config.data.val_size) == (100, 5000, 500)


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ((), 1e-6),
        (("tuning=full",), 1e-6),
        (("tuning=lora",), 1e-5),
        (("tuning=lora", "tuning.learning_rate=3e-5"), 3e-5),
    ],
)
def test_the_rate_at_paper_scale_is_that_of_the_tuning(
    overrides: tuple[str, ...], rate: float, configure: Callable[..., Config]
) -> None:
    assert configure("+scale=paper", *overrides).tuning.learning_rate == rate
    assert configure(*overrides, "+scale=paper").tuning.learning_rate == rate


@pytest.mark.parametrize(
    "override",
    [f"{group}.typo=1" for group in GROUPS if group not in APPENDED | FREE | {"debug"}] + ["typo=1", "budget.typo=1"],
)
def test_a_typo_fails_and_names_the_key(override: str, compose_tree: Callable[..., DictConfig]) -> None:
    key = override.split("=")[0]
    with pytest.raises(ConfigCompositionException, match=key):
        compose_tree(override)
    with pytest.raises((ConfigCompositionException, ConfigError), match="typo"):
        load_config(compose_tree(f"+{override}"))
    assert unknown_keys([override])[0].startswith(f"unknown key {key}")


def test_an_unknown_choice_lists_those_that_exist(compose_tree: Callable[..., DictConfig]) -> None:
    with pytest.raises(MissingConfigException, match="gsm_9k"):
        compose_tree("data=gsm_9k")


def test_a_wrong_type_fails_and_names_the_key(compose_tree: Callable[..., DictConfig]) -> None:
    with pytest.raises(Exception, match=r"policy\.rollouts"):
        compose_tree("policy.rollouts=many")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("polcy.rollouts=3", "policy.rollouts"),
        ("policy.rollout=3", "policy.rollouts"),
        ("+tuning.learning_rat=1", "tuning.learning_rate"),
        ("gepa.parent=3", "gepa.parents"),
        ("distilation=off", "distillation"),
    ],
)
def test_the_nearest_key_is_offered(written: str, meant: str) -> None:
    assert unknown_keys([written]) == [f"unknown key {written.split('=')[0].lstrip('+')}, did you mean {meant}?"]


def test_known_and_foreign_keys_are_left_alone() -> None:
    arguments = ["--cfg", "job", "+experiment=grpo", "seed=0,1", "hydra.foo=1", "model.chat_template_kwargs.x=1"]
    assert unknown_keys([*arguments, "data.tasks.gcd.params.max_value=9", "tuning.r=8", "~debug"]) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.rollouts=1"], "policy.rollouts=1 must be at least 2"),
        (["hard_set.tau=7"], "hard_set.tau=7 exceeds policy.rollouts=6"),
        (["rollout.temperature=0"], "rollout.temperature must be above 0"),
        (["rollout.top_p=0.9"], "use rollout.top_p=1 or distillation=replace"),
        (["rollout.top_p=0.9", "distillation=replace", "rollout.importance=token"], "or rollout.importance=off"),
        (["rollout=vllm", "rollout.weight_transfer=disk"], "rollout.weight_transfer=disk must be one of auto, folder"),
        (["rollout=vllm_server"], "rollout=vllm_server needs rollout.urls"),
        (["rollout=vllm_server", "rollout.urls=[http://x]", "tuning=full"], "use tuning=lora, or rollout=vllm"),
        (["gepa.dev_samples=4"], "gepa.temperature > 0"),
        (["hard_set.plain_rollouts=6"], "hard_set.plain_rollouts=6 must be below policy.rollouts=6"),
        (["hard_set.plain_rollouts=0"], "hard_set=official"),
        (["policy.loss=ppo"], "policy.loss=ppo must be one of grpo, dr_grpo, dapo, a dotted name"),
        (["data=jsonl", "data.path=absent.jsonl", "reward=math"], "data.path=absent.jsonl is not a file"),
        (["reward=function"], "reward.function"),
        (["data=deepscaler_5k"], "use reward=math"),
        (["data.prompt=hello"], "data.prompt must contain {question}"),
        (["+experiment=grpo_equal_tokens"], "budget.tokens=0 must be above 0"),
        (["policy.betas=[0.9]"], "policy.betas=[0.9]: give two numbers, such as [0.9,0.999]"),
        (["policy.betas=[0.9,1.0]"], "policy.betas=[0.9, 1.0]: each must be at least 0 and below 1"),
        (["policy.dual_clip=0.5"], "policy.dual_clip=0.5: give at least 1, or 0 for none"),
        (["tuning.dropout=1"], "tuning.dropout=1.0 must be at least 0 and below 1"),
        (
            ["rollout=vllm", "rollout.gpu_memory_utilization=1.5"],
            "utilization=1.5 must be above 0 and at most 1",
        ),
        (["rollout=vllm", "trainer=gpu", "model.dtype=float32"], "use model.dtype=bfloat16, or rollout=hf"),
        (["rollout=vllm_server", "rollout.urls=[localhost:8000]"], "rollout.urls: localhost:8000 is not an address"),
        (["trainer.devices=0"], "trainer.devices=0: give a number of at least 1, or auto"),
        (["trainer.devices=all"], "trainer.devices=all: give a number of at least 1, or auto"),
        (["trainer.strategy=fsdp2", "rollout=vllm"], "use rollout=hf, or trainer.strategy=ddp"),
        (["model.attn_implementation=eager"], "policy.layout=shared_prefix needs model.attn_implementation=sdpa"),
        (["model=tiny", "model.architecture=nonsense"], "model.architecture=nonsense must be one of llama, qwen3"),
        (["gepa.metric_calls=null", "gepa.candidates=0"], "gepa.candidates=0 must be above 0"),
        (["tuning.learning_rate=nan"], "tuning.learning_rate=nan must be above 0"),
    ],
)
def test_what_is_refused_names_the_key_and_the_fix(
    overrides: list[str], message: str, configure: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(*overrides)
    assert message in str(caught.value)


def test_a_missing_api_key_is_one_line_before_anything_starts(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY.*reflector=strategies"):
        configure("reflector=openai")
    assert validate(configure("reflector=openai", "+experiment=self_ref")) == []


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "p2o.run", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    typo = run("polcy.rollouts=3")
    assert typo.returncode == 2
    assert typo.stderr.strip() == "unknown key polcy.rollouts, did you mean policy.rollouts?"
    invalid = run("policy.rollouts=1")
    assert invalid.returncode == 2
    assert "policy.rollouts=1 must be at least 2" in invalid.stderr
    absent = run("data=gsm_9k")
    assert absent.returncode == 2
    assert "reasoning_gym" in absent.stderr, "the valid ones"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was started"
    shown = run("--cfg", "job", "+experiment=self_ref")
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["gepa"]["variant"] == "self_ref"
    assert "teacher_ref" in run("--help").stdout
