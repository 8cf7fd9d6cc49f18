"""The probe by hand-made scores: what an engine may say, and what gives it away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2o.config.schema import LoraTuning, RandomModel
from p2o.policy.model import load_policy
from p2o.rollout.probe import TEMPERATURE, Probe, ProbeError, Scores

DRAWN = (70, 80, 90)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    folder: Path = tmp_path_factory.mktemp("probe") / "tiny"
    return Probe(load_policy(RandomModel(path=str(folder), dtype="float32"), LoraTuning(r=4), seed=0))


@pytest.fixture(scope="module")
def right(probe: Probe) -> Scores:
    """By the model's own logits, not by the trainer's head."""
    ids_1T = torch.tensor([probe.tokens + DRAWN])
    with torch.no_grad():
        logits_TV = probe.policy.module(input_ids=ids_1T).logits[0, :-1].float()
    first, target_T1 = len(probe.tokens) - 1, ids_1T[0, 1:, None]
    plain_T, hot_T = (x.log_softmax(-1).gather(1, target_T1)[:, 0] for x in (logits_TV, logits_TV / TEMPERATURE))
    return Scores(tuple(plain_T[:first].tolist()), DRAWN, tuple(hot_T[first:].tolist()))


def test_an_engine_that_agrees_passes(probe: Probe, right: Scores) -> None:
    assert probe.check(right, tolerance=1e-4) < 1e-5


def test_what_the_engine_drew_is_scored_in_place_of_the_text(probe: Probe, right: Scores) -> None:
    plain_T = probe._trainer(DRAWN, 1.0)[len(probe.tokens) - 1 :]
    drawn = replace(right, scored=tuple(plain_T.tolist()), continued=DRAWN)
    assert probe.check(drawn, tolerance=1e-4) < 1e-5
    with pytest.raises(ProbeError, match=r"rollout\.probe_tolerance"):
        probe.check(replace(drawn, scored=tuple((plain_T + 0.2).tolist())), tolerance=0.15)


@pytest.mark.parametrize("off", [0.2, float("nan")])
def test_other_weights_are_found(off: float, probe: Probe, right: Scores) -> None:
    other = replace(right, scored=tuple(x + off for x in right.scored))
    with pytest.raises(ProbeError, match=r"rollout\.probe_tolerance=0\.15"):
        probe.check(other, tolerance=0.15)


def test_logprobs_before_the_temperature_are_found(probe: Probe, right: Scores) -> None:
    plain = probe._trainer(DRAWN, 1.0)[len(probe.tokens) - 1 :]
    with pytest.raises(ProbeError, match="--logprobs-mode processed_logprobs"):
        probe.check(replace(right, drawn_logprobs=tuple(plain.tolist())), tolerance=0.15)
