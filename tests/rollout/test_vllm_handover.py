"""When the engine hands weights over, checks them and leaves the GPU to vLLM; a recorder stands for its process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from p2o.config.schema import FullTuning, LoraTuning, RandomModel, VllmRollout
from p2o.files import remove_drafts
from p2o.policy.model import Policy, load_policy
from p2o.rollout import vllm
from p2o.rollout.engine import EngineError
from p2o.rollout.probe import TEMPERATURE, ProbeError
from p2o.rollout.vllm import VllmEngine
from p2o.rollout.vllm_process import EngineDiedError
from p2o.types import Prompt, SamplingParams

PROMPTS = [Prompt((5, 6, 7), 1)]
SHORT = SamplingParams(1.0, 3)


class Recorder:
    """Of ``VllmProcess``: what is asked of it. ``scores`` is what it says of the probe."""

    events: list[str]
    scores: ClassVar[dict[str, list[float]]]
    dies = False

    def __init__(self, options: dict[str, Any], *_: Any) -> None:
        self.options, self.context, self.running, self.pid = options, 64, True, 0
        self.events.append("start")

    def call(self, method: str, seconds: float, on_line: Any = None, **arguments: Any) -> Any:
        self.events.append(method)
        if method == "score":
            return self.scores
        if method == "generate":
            if Recorder.dies:
                Recorder.dies = False
                raise EngineDiedError("was killed")
            on_line({"done": 0, "tokens": [9], "logprobs": [-1.0], "finish_reason": "length", "cached": 0})
        return None

    def kill(self) -> None:
        self.running = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of vLLM's process, in order."""
    events: list[str] = []
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "vllm" else found(name))
    monkeypatch.setattr(vllm, "VllmProcess", Recorder)
    monkeypatch.setattr(Recorder, "events", events, raising=False)
    return events


@pytest.fixture
def engine(
    folder: Path, events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VllmEngine]]:
    made: list[VllmEngine] = []

    def build(tuning: LoraTuning | FullTuning, **needs: int) -> VllmEngine:
        policy = load_policy(RandomModel(path=str(folder), dtype="float32"), tuning, seed=0)
        one = VllmEngine(policy, VllmRollout(probe_tolerance=1e-3), needs, tmp_path)
        scored, drawn = one.probe._trainer((), 1.0), one.probe._trainer((9,), TEMPERATURE)[-1:]
        right = {"scored": scored.tolist(), "drawn": [9], "drawn_logprobs": drawn.tolist()}
        monkeypatch.setattr(Recorder, "scores", right, raising=False)
        made.append(one)
        return one

    yield build
    for one in made:
        one.close()


def test_weights_are_shared_with_a_policy_that_was_moved_after_the_engine_was_made(
    engine: Callable[..., VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer moves its module to the GPU after everything is built. The worker is told at its start."""
    one = engine(FullTuning())
    monkeypatch.setattr(vllm, "shares_memory", lambda device, _: device.type == "meta")
    handed: list[object] = []
    monkeypatch.setattr(vllm, "SharedWeights", lambda policy: SimpleNamespace(load=lambda *_: handed.append(policy)))
    monkeypatch.setattr(one.probe, "check", lambda *_: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "device", torch.device("meta"))
        one.sync(0)
    assert handed == [one.policy]
    assert isinstance(one._process, Recorder)
    assert one._process.options["shares_memory"] is True


def test_the_trainers_unused_memory_is_given_back_before_the_engine_wakes(
    engine: Callable[..., VllmEngine], events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(LoraTuning(r=4))
    monkeypatch.setattr(one.probe, "check", lambda *_: 0.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "device", torch.device("cuda", 0))
        one.sync(0)
        one.generate(PROMPTS, SHORT, version=0)
        one.sleep()
        one.sync(1)
    assert events[:6] == ["empty", "start", "load_adapter", "score", "empty", "generate"]
    assert events[6:] == ["sleep", "empty", "load_adapter", "score"]
    events.clear()
    one.sync(2)
    assert "empty" not in events, "a CPU has nothing to give back"


@pytest.mark.parametrize("tuning", [LoraTuning(r=4), FullTuning()])
def test_a_new_process_passes_the_probe_before_it_generates(
    tuning: LoraTuning | FullTuning, engine: Callable[..., VllmEngine], events: list[str]
) -> None:
    """By what the trainer gave the text at the sync, whatever it has learnt since."""
    one = engine(tuning)
    load = "load_adapter" if one.policy.lora else "load_weights"
    one.sync(0)
    with torch.no_grad():
        for p in one.policy.trainable.values():
            p.add_(1.0)
    events.clear()
    Recorder.dies = True
    one.generate(PROMPTS, SHORT, version=0)
    assert events == ["generate", "start", load, "score", "generate"]


def test_a_new_process_with_other_weights_is_found(
    engine: Callable[..., VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(LoraTuning(r=4))
    one.sync(0)
    wrong = [x - 0.5 for x in Recorder.scores["scored"]]
    monkeypatch.setitem(Recorder.scores, "scored", wrong)
    Recorder.dies = True
    with pytest.raises(ProbeError, match=r"rollout\.probe_tolerance"):
        one.generate(PROMPTS, SHORT, version=0)


def test_a_policy_that_takes_its_place_again_passes_the_probe(
    engine: Callable[..., VllmEngine], events: list[str]
) -> None:
    one = engine(FullTuning())
    one.sync(0)
    events.clear()
    one.generate(PROMPTS, SHORT, version=0, reference=True)
    one.generate(PROMPTS, SHORT, version=0)
    one.generate(PROMPTS, SHORT, version=0)
    assert events == ["load_weights", "generate", "load_weights", "score", "generate", "generate"]


def test_lengths_that_the_engine_cannot_hold_are_named(engine: Callable[..., VllmEngine]) -> None:
    one = engine(LoraTuning(r=4), **{"rollout.max_prompt_tokens + rollout.max_new_tokens": 65})
    with pytest.raises(EngineError, match=r"rollout\.max_new_tokens may come to 65 .* 64: .*rollout\.max_model_len"):
        one.sync(0)


def test_what_a_killed_run_handed_over_goes_with_its_drafts(engine: Callable[..., VllmEngine], tmp_path: Path) -> None:
    engine(FullTuning()).sync(0)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == []
