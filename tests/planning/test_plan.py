"""A plan against what a real run counts, and sizes against real models; the command on a machine with too little."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import Qwen3Config

from p2o.config import Config
from p2o.config.schema import CustomModel, FullTuning, LoraTuning, ModelConfig, RandomModel
from p2o.job import train
from p2o.launch import launch
from p2o.planning import footprint
from p2o.planning.counts import Questions
from p2o.planning.footprint import Part
from p2o.planning.plan import make_plan
from p2o.planning.plan_text import render
from p2o.planning.sizes import model_size
from p2o.policy.attention import build_blocks
from p2o.policy.builders import ModelError
from p2o.policy.layout import Segment
from p2o.policy.model import Policy, load_policy
from p2o.types import Phase

TINY = ("debug=tiny", "trainer.threads=1", "trainer.progress=false", "logger=off")
QUESTIONS = [{"problem": f"{a} + {b} =", "answer": str(a + b)} for a in range(8) for b in range(8)]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return path


@pytest.fixture(scope="module")
def qwen3_4b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published shape of the paper's model: its configuration alone, no weights."""
    folder = tmp_path_factory.mktemp("qwen3-4b")
    Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder


def on(config: Config, device: str) -> Config:
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, accelerator=device))


def sums(questions: Path, *more: str) -> tuple[str, ...]:
    return (
        "data=jsonl",
        f"data.path={questions}",
        "data.train_size=18",
        "data.val_size=8",
        "reward=exact",
        *TINY,
        *more,
    )


@pytest.mark.parametrize(
    "more",
    [
        ("+experiment=teacher_ref", "policy.updates_per_round=2"),
        (
            "+experiment=grpo",
            "validation.every_rounds=3",
            "trainer.rounds_per_epoch=4",
            "validation.samples=2",
            "validation.temperature=1",
        ),
    ],
)
def test_a_plan_is_what_a_run_counts(more: tuple[str, ...], configure: Callable[..., Config], questions: Path) -> None:
    """Everything that is said to be exact equals the run's ledger, the rest bounds it from above."""
    config = configure(*sums(questions, *more))
    plan, result = make_plan(config), train(config)
    ledger, counts = result.state.ledger.by_phase, plan.counts
    assert counts.rounds == result.state.step
    assert counts.validations == len(result.state.validation.history)
    for phase in (Phase.POLICY, Phase.VALIDATION):
        assert counts.work[phase].rollouts == ledger[phase].rollouts
    evolved = config.gepa.variant != "off"
    assert (ledger[Phase.EVOLUTION].metric_calls > 0) == evolved == (counts.metric_calls > 0)
    assert ledger[Phase.EVOLUTION].metric_calls <= counts.metric_calls
    assert ledger[Phase.EVOLUTION].rollouts <= counts.work[Phase.EVOLUTION].rollouts
    assert sum(phase.reflection_calls for phase in ledger.values()) <= counts.reflection_calls
    for phase in Phase:
        planned = counts.work[phase]
        assert ledger[phase].generated_tokens <= planned.generated_tokens
        assert ledger[phase].prompt_tokens <= planned.prompt_tokens
        assert ledger[phase].trained_tokens <= planned.trained_tokens


@pytest.mark.parametrize("tuning", [LoraTuning(learning_rate=1e-4), FullTuning(learning_rate=1e-5)])
@pytest.mark.parametrize(("architecture", "lean"), [("qwen3", True), ("llama", True), ("llama", False)])
def test_sizes_are_those_of_the_loaded_model(
    architecture: str, lean: bool, tuning: LoraTuning | FullTuning, tmp_path: Path
) -> None:
    """With the layers and the adapter that keep less, and without."""
    path = str(tmp_path / "model")
    model = RandomModel(path=path, architecture=architecture, layers=5, dtype="bfloat16", lean_layers=lean)
    size = model_size(model, tuning, fused_lora=lean)
    policy = load_policy(model, tuning, seed=0, fused_lora=lean)
    assert size.parameters == sum(p.numel() for p in policy.module.parameters())
    assert size.trainable == sum(p.numel() for p in policy.trainable.values())
    kept = kept_by_a_real_pass(policy, 96) - kept_by_a_real_pass(policy, 48)
    assert size.kept_per_token == pytest.approx(kept / 48, rel=0.1)


def kept_by_a_real_pass(policy: Policy, tokens: int) -> int:
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, positions = torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens)[None]
    blocks = build_blocks((Segment(0, tokens),), tokens, ids.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.hidden_states(ids, positions, blocks)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_the_papers_model_without_its_weights(qwen3_4b: Path) -> None:
    full = model_size(ModelConfig(path=str(qwen3_4b)), FullTuning(learning_rate=1e-6))
    assert full.parameters == full.trainable == 4_022_468_096
    assert full.cache_per_token == 2 * 36 * 8 * 128 * 2
    lora = model_size(ModelConfig(path=str(qwen3_4b)), LoraTuning(learning_rate=1e-4))
    linear = [(2560, 4096), (2560, 1024), (2560, 1024), (4096, 2560), (2560, 9728), (2560, 9728), (9728, 2560)]
    assert lora.trainable == 36 * sum(16 * (i + o) for i, o in linear)
    assert lora.frozen == full.parameters
    checkpointed = model_size(ModelConfig(path=str(qwen3_4b), gradient_checkpointing=True), FullTuning())
    assert checkpointed.kept_per_token < full.kept_per_token / 9
    assert checkpointed.kept_per_token > 35 * 2560 * 4, "the inputs of the layers"


def test_the_paper_on_a_laptop(
    qwen3_4b: Path,
    configure: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    budget = ("budget.tokens=5000000", "budget.seconds=60")
    config = configure("+experiment=teacher_ref", "+scale=paper", "debug=plan", f"model.path={qwen3_4b}", *budget)
    assert launch(config) is None
    said = capsys.readouterr().out
    assert "400 in 10 epochs, 800 updates" in said
    assert "each with a budget of 11,040 evaluations" in said
    assert "4,022,468,096" in said
    assert "OPENAI_API_KEY is not set" in said
    assert "The run ends earlier if it reaches budget.tokens=5,000,000 or budget.seconds=60" in said
    if not torch.cuda.is_available():
        assert "torch finds no GPU here" in said
    if importlib.util.find_spec("vllm") is None:
        assert "vLLM is not installed here" in said
    assert not Path(config.run_dir).exists(), "nothing is started"


def test_a_model_that_is_not_there_is_a_clear_line(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = make_plan(configure("+experiment=grpo", "+scale=paper", "debug=plan", "model.path=nobody/nothing"))
    assert plan.size is None
    assert plan.counts.work[Phase.POLICY].rollouts == 300_000
    assert any(
        "a folder with its config.json is enough: cannot load model.path=nobody/nothing" in note for note in plan.notes
    )
    assert "unknown" in render(plan)


def test_what_cannot_fit_is_warned_of(qwen3_4b: Path, configure: Callable[..., Config]) -> None:
    config = configure(
        "+experiment=grpo",
        "+scale=paper",
        "debug=plan",
        f"model.path={qwen3_4b}",
        "model.gradient_checkpointing=false",
        "trainer=cpu",
    )
    warned = [line for line in make_plan(config).notes if line.startswith("WARNING: cpu: ")]
    assert len(warned) == 1
    assert "activations of a micro-batch" in warned[0]
    longer = make_plan(dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, max_new_tokens=40000)))
    assert any("the model attends to 40,960" in line for line in longer.notes)


def test_vllm_sleeps_during_the_update(qwen3_4b: Path, configure: Callable[..., Config]) -> None:
    """On a card it is there for the rollouts only; its weights then wait in host memory."""
    config = configure("+experiment=grpo", "+scale=paper", "debug=plan", f"model.path={qwen3_4b}")
    plan = make_plan(config)
    assert plan.size is not None
    card = 80 * 2**30
    parts = list(footprint.memory(config, plan.size, plan.questions, card))
    taken = {part.name: part for part in parts}
    assert (taken["vLLM"].when, taken["vLLM"].bytes) == ("rollout", card // 2)
    asleep = taken["vLLM's weights while it sleeps"]
    assert (asleep.device, asleep.when, asleep.bytes) == ("cpu", "update", 2 * plan.size.parameters)
    update = sum(part.bytes for part in parts if part.device == "gpu" and part.when in ("always", "update"))
    assert footprint.peak(parts, "gpu") == update > card
    assert any("the rounds above by time/rollout + time/update" in note for note in plan.notes)


def test_split_weights_are_planned_per_device(qwen3_4b: Path, configure: Callable[..., Config]) -> None:
    """Full tuning of 4B: 64 GB of states on each device, or an eighth of them."""
    common = ("+experiment=grpo", "tuning=full", "model=qwen3_4b", f"model.path={qwen3_4b}", "trainer.devices=8")
    size = model_size(ModelConfig(path=str(qwen3_4b)), FullTuning(learning_rate=1.0))
    states = {}
    for strategy in ("ddp", "fsdp2"):
        config = on(configure(*common, f"trainer.strategy={strategy}"), "gpu")
        parts = list(footprint.memory(config, size, Questions(8, 8, 100, True), 80 * 2**30))
        states[strategy] = sum(
            part.bytes for part in parts if part.name in ("weights", "AdamW's two moments", "gradients")
        )
        assert any(part.name == "checkpoint, gathered" for part in parts) == (strategy == "fsdp2")
    assert states["ddp"] == 16 * size.parameters
    assert states["fsdp2"] == pytest.approx(states["ddp"] / 8, abs=8)


def test_parts_of_different_times_are_not_added_up() -> None:
    parts = [Part("a", "cpu", "always", 5), Part("b", "cpu", "update", 7), Part("c", "cpu", "rollout", 4)]
    assert footprint.peak(parts, "cpu") == 12
    assert footprint.peak(parts, "gpu") == 0


@pytest.mark.parametrize(("rollout", "held"), [("hf", 1), ("vllm", 0)])
def test_a_reference_model_is_planned_where_the_engine_makes_one(
    rollout: str, held: int, configure: Callable[..., Config], qwen3_4b: Path
) -> None:
    """vLLM puts the initial weights in the policy's place for the call."""
    config = configure("+experiment=self_ref", "tuning=full", f"rollout={rollout}")
    size = model_size(ModelConfig(path=str(qwen3_4b)), config.tuning)
    for device, capacity in (("cpu", None), ("gpu", 80 * 2**30)):
        parts = footprint.memory(on(config, device), size, Questions(8, 8, 100, True), capacity)
        assert sum(part.name.startswith("the reference model") for part in parts) == held


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_engine_on_a_gpu_copies_what_is_trained(
    tuning: str, configure: Callable[..., Config], qwen3_4b: Path
) -> None:
    config = configure("+experiment=grpo", f"tuning={tuning}", "model.dtype=bfloat16")
    size = model_size(ModelConfig(path=str(qwen3_4b)), config.tuning)
    for device, copied in (("cpu", size.parameters), ("gpu", size.trainable)):
        parts = footprint.memory(on(config, device), size, Questions(8, 8, 100, True), None)
        assert [part.bytes for part in parts if part.name == "the engine's copy of the weights"] == [2 * copied]


def test_a_plan_does_not_wait_for_a_custom_builder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.builder=mine\.build is not built yet.*without debug=plan"):
        model_size(CustomModel(path=str(tmp_path), builder="mine.build"), FullTuning(learning_rate=1.0))
