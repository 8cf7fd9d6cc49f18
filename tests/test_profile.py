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
from p2o.policy.model import Policy, load_policy
from p2o.profile import OTHER, count, profiling, report, timed
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.types import Grade, Group, Outcome, Problem, Prompt, Rollout, SamplingParams


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return load_policy(RandomModel(path=str(folder), dtype="float32"), LoraTuning(r=4), seed=0)


def test_off_it_is_one_shared_context(policy: Policy) -> None:
    assert timed("decode", layers=3) is timed("sync")
    with profiling(policy.causal_lm, policy.dtype, enabled=False) as profile:
        assert profile is None
        assert timed("decode") is timed("sync")


def test_an_inner_phase_is_not_counted_in_the_outer_one(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(profile_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(profile_module, "matrix_peak", lambda *_: 1.0)
    with profiling(policy.causal_lm, policy.dtype) as profile:
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


def test_a_step_is_counted_token_by_token(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    lm = policy.causal_lm
    layers = sum(
        p.numel() for n, p in lm.model.named_parameters() if p.dim() == 2 and "embed" not in n and "lora" not in n
    )
    head = lm.get_output_embeddings().weight.numel()
    engine = HfEngine(policy, HfRollout())
    prompt = (5, 6, 7, 8)
    with profiling(policy.causal_lm, policy.dtype) as profile, caplog.at_level(logging.INFO, "p2o"):
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
        generated = sum(len(g.tokens) for g in made)
        assert costs["decode"].tokens == generated
        assert costs["decode"].operations == 2 * generated * (layers + head)
        assert costs["prefill"].tokens == len(prompt) - 1, "four times the same prompt, its last token is decoded"
        assert costs["forward"].tokens == costs["backward"].tokens == metrics.forward_tokens
        assert costs["forward"].operations == 2 * (metrics.forward_tokens * layers + 2 * generated * head)
        assert costs["backward"].operations == 2 * metrics.forward_tokens * layers
        assert costs["sync"].calls == costs["optimizer"].calls == 1
        report("round 1")
    table = caplog.records[-1].getMessage()
    assert table.startswith("profile of round 1: ")
    for name in ("prefill", "decode", "forward", "backward", "optimizer", "sync", OTHER):
        assert f"\n{name} " in table


def test_tokens_of_another_process_are_counted_without_arithmetic(policy: Policy) -> None:
    count(1)  # off, it does nothing
    with profiling(policy.causal_lm, policy.dtype) as profile:
        assert profile is not None
        with timed("generate"):
            count(5)
            with timed("grading"):
                pass
            count(6)
        assert (profile.costs["generate"].tokens, profile.costs["generate"].operations) == (11, 0.0)
        assert profile.costs["grading"].tokens == 0


def test_the_device_is_that_on_which_the_work_is_done(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer moves the policy to its GPU after the profile has begun."""
    measured: list[torch.device] = []
    monkeypatch.setattr(profile_module, "matrix_peak", lambda _, device: measured.append(device) or 1.0)
    with profiling(policy.causal_lm, policy.dtype), monkeypatch.context() as patch:
        patch.setattr(type(policy.causal_lm), "device", torch.device("meta"))
        with timed("sync"):
            pass
    assert set(measured) == {torch.device("meta")}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_memory_is_that_of_the_phase(policy: Policy) -> None:
    with profiling(policy.causal_lm, policy.dtype) as profile:
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
