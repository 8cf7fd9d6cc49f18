"""The profile counts what was really done, once, and costs nothing while it is off."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from groups import take_update

from p2o import profile as profile_module
from p2o.config.schema import DistillationConfig, HfRollout, LoraTuning, PolicyConfig, RandomModel
from p2o.policy.model import load_policy
from p2o.profile import OTHER, count, profiling, report, timed
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.types import Grade, Group, Outcome, Problem, Prompt, Rollout, SamplingParams


def test_off_it_is_one_shared_context() -> None:
    assert timed("decode", tokens=3) is timed("sync")
    with profiling(enabled=False) as profile:
        assert profile is None
        assert timed("decode") is timed("sync")


def test_an_inner_phase_is_not_counted_in_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(profile_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    with profiling() as profile:
        assert profile is not None
        with timed("outer"):
            clock.now += 4.0
            with timed("inner"):
                clock.now += 64.0
            clock.now += 2.0
        clock.now += 16.0
        with pytest.raises(ZeroDivisionError), timed("inner"):
            _ = 1 / 0
        costs = dict(profile.costs)
        profile.table("a test, which ends the last phase")
        assert costs["inner"].calls == 2
        assert {name: cost.seconds for name, cost in costs.items()} == {"inner": 64.0, "outer": 6.0, OTHER: 16.0}
        assert profile.costs.keys() == {OTHER}, "a report begins anew"
    assert timed("outer") is timed("inner"), "it ends with the block"


def test_a_step_is_counted_token_by_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = load_policy(RandomModel(path=str(tmp_path / "tiny"), dtype="float32"), LoraTuning(r=4), seed=0)
    engine = HfEngine(policy, HfRollout())
    prompt = (5, 6, 7, 8)
    with profiling() as profile, caplog.at_level(logging.INFO, "p2o"):
        assert profile is not None
        engine.sync(0)
        made = engine.generate([Prompt(prompt, k) for k in range(4)], SamplingParams(1.0, 6), version=0)
        rollouts = tuple(
            Rollout("q", "plain", k, prompt, g.tokens, g.logprobs, "", "length", Grade(Outcome.WRONG, k % 2), 0)
            for k, g in enumerate(made)
        )
        metrics = take_update(
            policy,
            torch.optim.SGD(policy.trainable.values(), lr=0.0),
            [Group(Problem("q", "", ""), prompt, rollouts)],
            PolicyConfig(),
            DistillationConfig(),
            temperature=1.0,
            max_new_tokens=6,
            seed=0,
        )
        costs = profile.costs
        assert costs["decode"].tokens == sum(len(g.tokens) for g in made)
        assert costs["prefill"].tokens == len(prompt) - 1, "four times the same prompt, its last token is decoded"
        assert costs["forward"].tokens == costs["backward"].tokens == metrics.forward_tokens
        assert costs["sync"].calls == costs["optimizer"].calls == 1
        report("round 1")
    table = caplog.records[-1].getMessage()
    assert table.startswith("profile of round 1: ")
    for name in ("prefill", "decode", "forward", "backward", "optimizer", "sync", OTHER):
        assert f"\n{name} " in table


def test_tokens_can_be_counted_inside_a_phase() -> None:
    count(1)  # off, it does nothing
    with profiling() as profile:
        assert profile is not None
        with timed("generate"):
            count(5)
            with timed("grading"):
                pass
            count(6)
        assert profile.costs["generate"].tokens == 11
        assert profile.costs["grading"].tokens == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_memory_is_that_of_the_phase() -> None:
    with profiling() as profile:
        assert profile is not None
        with timed("large"):
            large = torch.ones(64, 2**20)
            del large
        with timed("small"):
            pass
        with timed("outer"):
            pass
        large, small = profile.costs["large"].peak_bytes, profile.costs["small"].peak_bytes
        assert large - small > 200 * 2**20
