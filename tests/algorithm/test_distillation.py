"""Context distillation by hand: which prompt, which old log-probs, which tokens."""

from __future__ import annotations

import math

import pytest
import torch

from p2o.algorithm.distillation import KINDS, kept_tokens, old_logprobs, training_prompt

ENGINE = torch.tensor([-2.0, -2.0, -2.0, -2.0, -2.0, -2.0])
RATIOS = (0.009, 0.011, 1.0, 9.9, 10.1, 50.0)
POLICY = ENGINE + torch.tensor(RATIOS).log()
TEMPLATED = torch.tensor([True, True, True, True, True, False])


def kept(kind: str, policy: torch.Tensor = POLICY, engine: torch.Tensor = ENGINE) -> list[bool]:
    return kept_tokens(kind, policy, engine, TEMPLATED, low=0.01, high=10.0).tolist()


def test_the_mask_drops_templated_tokens_whose_ratio_leaves_its_bounds() -> None:
    """The last token's ratio is the largest, but its rollout is plain: there is no context to correct for."""
    assert kept("mask") == [False, True, True, True, False, True]


@pytest.mark.parametrize("kind", ["off", "replace", "importance"])
def test_only_the_mask_drops_tokens(kind: str) -> None:
    assert kept(kind) == [True] * 6


def test_a_ratio_that_is_no_number_is_masked() -> None:
    nothing = torch.full_like(ENGINE, math.nan)
    assert kept("mask", policy=nothing) == [False] * 5 + [True]
    assert kept("mask", engine=torch.full_like(ENGINE, -math.inf)) == [False] * 5 + [True]


def test_only_importance_takes_the_engines_log_probs_and_only_for_templated_rollouts() -> None:
    assert torch.equal(old_logprobs("importance", POLICY, ENGINE, TEMPLATED)[:5], ENGINE[:5])
    assert old_logprobs("importance", POLICY, ENGINE, TEMPLATED)[5] == POLICY[5]
    for kind in ("off", "replace", "mask"):
        assert torch.equal(old_logprobs(kind, POLICY, ENGINE, TEMPLATED), POLICY)


def test_off_alone_trains_under_the_prompt_that_was_sampled_under() -> None:
    plain, sampled = (1, 2), (9, 1, 2)
    assert {kind: training_prompt(kind, plain, sampled) for kind in KINDS} == {
        "off": sampled,
        "replace": plain,
        "importance": plain,
        "mask": plain,
    }
    with pytest.raises(ValueError, match=r"distillation\.kind=on: choose one of off, replace"):
        training_prompt("on", plain, sampled)
