"""When the engine hands weights over, checks them and leaves the GPU to vLLM; a stub stands for the server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from p2o.config.schema import FullTuning, LoraTuning, RandomModel, VllmRollout
from p2o.files import remove_drafts
from p2o.policy.model import Policy, load_policy
from p2o.rollout import handover, vllm, vllm_child
from p2o.rollout.engine import EngineError, StalePolicyError
from p2o.rollout.probe import ProbeError, Scores
from p2o.rollout.vllm import VllmEngine
from p2o.types import Prompt, SamplingParams

PROMPTS = [Prompt((5, 6, 7), 1)]
SHORT = SamplingParams(1.0, 3)


class Built:
    """An engine over a stub that tells what it was asked, and what the engine did meanwhile, in order."""

    def __init__(self, engine: VllmEngine, note: Path, options: dict[str, Any]) -> None:
        self.engine, self.note, self.options = engine, note, options
        self.seen = 0

    def asked(self) -> list[str]:
        """Since the last call; the probe's two requests are one."""
        words = self.note.read_text().splitlines()
        new, self.seen = words[self.seen :], len(words)
        new = [word for word in new if not word.startswith(("models", "is_sleeping", "pid", "unload"))]
        return [word for word, before in zip(new, ["", *new], strict=False) if (word, before) != ("probe", "probe")]

    def kill(self) -> None:
        (server,) = self.engine._servers
        server.drop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny"


@pytest.fixture
def build(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Built]]:
    """``build(tuning, **needs)``: an engine that believes what the stub says of the probe."""
    found, made = importlib.util.find_spec, []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "vllm" else found(name))
    monkeypatch.setattr(vllm_child, "SERVE", "stub_serve")
    note = tmp_path / "asked"

    def one(tuning: LoraTuning | FullTuning, **needs: int) -> Built:
        policy = load_policy(RandomModel(path=str(folder), dtype="float32"), tuning, seed=0)
        engine = VllmEngine(policy, VllmRollout(probe_tolerance=1e-3), needs, tmp_path / "run")
        monkeypatch.setattr(engine.probe, "check", lambda *_: 0.0)
        options = engine._options
        built = Built(engine, note, {"note": str(note)})
        monkeypatch.setattr(
            engine._servers[0], "_options", lambda: ({**options()[0], **built.options}, engine.policy.device)
        )
        made.append(engine)
        return built

    yield one
    for engine in made:
        engine.close()


def test_weights_are_shared_with_a_policy_that_was_moved_after_the_engine_was_made(
    build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer moves its module to the GPU after everything is built. The server is told at its start."""
    one = build(FullTuning())
    monkeypatch.setattr(vllm, "shares_memory", lambda device, _: device.type == "meta")
    monkeypatch.setattr(handover, "_handle", lambda tensor: {})
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "device", torch.device("meta"))
        one.engine.sync(0)
        assert one.engine._options()[0]["shares_memory"] is True
    transfer = ["init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"]
    assert one.asked() == ["start", *transfer, "reset_prefix_cache", "probe"]
    one.engine.generate(PROMPTS, SHORT, version=0)
    assert one.asked() == ["generate"]


def test_shared_weights_are_gone_after_an_update(build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was copied, what the engine does not hold cannot be installed once the trainer moved on."""
    one = build(FullTuning())
    monkeypatch.setattr(vllm, "shares_memory", lambda *_: True)
    monkeypatch.setattr(handover, "_handle", lambda tensor: {})
    one.engine.sync(0)
    one.kill()
    with torch.no_grad():
        next(iter(one.engine.policy.trainable.values())).add_(1.0)
    with pytest.raises(StalePolicyError, match="since it was handed to the engine"):
        one.engine.generate(PROMPTS, SHORT, version=0)


def test_the_trainers_unused_memory_is_given_back_before_the_engine_wakes(
    build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(LoraTuning(r=4))

    def note_it() -> None:
        if one.note.exists():
            one.note.write_text(one.note.read_text() + "empty\n")

    monkeypatch.setattr(torch.cuda, "empty_cache", note_it)
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "device", torch.device("cuda"))
        one.engine.sync(0)
        one.engine.generate(PROMPTS, SHORT, version=0)
        one.engine.sleep()
        one.engine.sync(1)
    assert one.asked() == [
        *("start", "load_lora_adapter", "probe", "empty", "generate", "empty", "sleep"),
        *("empty", "wake_up", "load_lora_adapter", "wake_up", "probe"),
    ]
    one.engine.sync(2)
    assert "empty" not in one.asked(), "a CPU has nothing to give back"


@pytest.mark.parametrize("tuning", [LoraTuning(r=4), FullTuning()])
def test_a_new_process_passes_the_probe_before_it_generates(
    tuning: LoraTuning | FullTuning, build: Callable[..., Built]
) -> None:
    one = build(tuning)
    load = ["load_lora_adapter"] if one.engine.policy.lora else ["reload_weights", "repack_head", "reset_prefix_cache"]
    one.engine.sync(0)
    assert one.asked() == ["start", *load, "probe"]
    one.engine.generate(PROMPTS, SHORT, version=0)
    one.kill()
    made = one.engine.generate(PROMPTS, SHORT, version=0)
    assert one.asked() == ["generate", "start", *load, "probe", "generate"]
    assert [m.tokens for m in made] == [(9, 9, 9)]
    assert one.engine.scalars()["cached_tokens"] == 4


def test_a_new_process_with_other_weights_is_found(
    build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(LoraTuning(r=4))
    one.engine.sync(0)
    one.kill()

    def disagree(scores: Scores, tolerance: float) -> float:
        assert len(scores.continued) == len(scores.continued_logprobs)
        raise ProbeError(f"more than rollout.probe_tolerance={tolerance}")

    monkeypatch.setattr(one.engine.probe, "check", disagree)
    for _ in range(2):
        with pytest.raises(ProbeError, match=r"the vLLM process: more than rollout\.probe_tolerance"):
            one.engine.generate(PROMPTS, SHORT, version=0)
    assert "generate" not in one.asked()


def test_a_policy_that_takes_its_place_again_passes_the_probe(build: Callable[..., Built]) -> None:
    one = build(FullTuning())
    one.engine.sync(0)
    one.asked()
    for reference in (True, False, False):
        one.engine.generate(PROMPTS, SHORT, version=0, reference=reference)
    swap = ["reload_weights", "repack_head", "reset_prefix_cache"]
    assert one.asked() == [*swap, "generate", *swap, "probe", "generate", "generate"]


def test_a_process_that_dies_of_every_call_ends_the_run(
    build: Callable[..., Built], caplog: pytest.LogCaptureFixture
) -> None:
    """The first and two more: rollout.max_restarts."""
    one = build(LoraTuning(r=4))
    one.options["dies"] = "generate"
    one.engine.sync(0)
    with pytest.raises(EngineError, match=r"failed 3 times .*rollout\.max_restarts(.|\n)*out of memory"):
        one.engine.generate(PROMPTS, SHORT, version=0)
    assert one.asked().count("start") == 3
    assert "it is started again and asked again" in caplog.text


def test_lengths_that_the_engine_cannot_hold_are_named(build: Callable[..., Built]) -> None:
    one = build(LoraTuning(r=4), **{"rollout.max_prompt_tokens + rollout.max_new_tokens": 65})
    with pytest.raises(EngineError, match=r"rollout\.max_new_tokens may come to 65 .* 64: .*rollout\.max_model_len"):
        one.engine.sync(0)


def test_what_a_killed_run_handed_over_goes_with_its_drafts(build: Callable[..., Built], tmp_path: Path) -> None:
    build(FullTuning()).engine.sync(0)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    remove_drafts(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
