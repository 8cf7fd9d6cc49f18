"""The probe by hand-made scores: what an engine may say, and what gives it away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2o.config.schema import LoraTuning, RandomModel
from p2o.policy.model import load_policy
from p2o.rollout.probe import TEMPERATURE, Probe, ProbeError, Scores

CONTINUED = (7, 100, 30, 5)
DRAWN = (70, 80, 90)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    folder: Path = tmp_path_factory.mktemp("probe") / "tiny"
    return Probe(load_policy(RandomModel(path=str(folder), dtype="float32"), LoraTuning(r=4), seed=0))


@pytest.fixture(scope="module")
def right(probe: Probe) -> Scores:
    """By the model's own logits, not by the trainer's head."""
    return Scores(CONTINUED, by_hand(probe, CONTINUED, 1.0), DRAWN, by_hand(probe, DRAWN, TEMPERATURE))


@torch.no_grad()
def by_hand(probe: Probe, drawn: tuple[int, ...], temperature: float) -> tuple[float, ...]:
    ids_1T = torch.tensor([probe.tokens + drawn])
    logits_TV = probe.policy.module(input_ids=ids_1T).logits[0, len(probe.tokens) - 1 : -1].float() / temperature
    return tuple(logits_TV.log_softmax(-1).gather(1, torch.tensor(drawn)[:, None])[:, 0].tolist())


def test_an_engine_that_agrees_passes(probe: Probe, right: Scores) -> None:
    assert probe.check(right, tolerance=1e-4) < 1e-5


@pytest.mark.parametrize("off", [0.2, float("nan")])
def test_other_weights_are_found(off: float, probe: Probe, right: Scores) -> None:
    other = replace(right, continued_logprobs=tuple(x + off for x in right.continued_logprobs))
    with pytest.raises(ProbeError, match=r"rollout\.probe_tolerance=0\.15"):
        probe.check(other, tolerance=0.15)


def test_logprobs_before_the_temperature_are_found(probe: Probe, right: Scores) -> None:
    plain = by_hand(probe, DRAWN, 1.0)
    with pytest.raises(ProbeError, match="--logprobs-mode processed_logprobs"):
        probe.check(replace(right, drawn_logprobs=plain), tolerance=0.15)
