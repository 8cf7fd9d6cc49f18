"""The whole update against a plain float64 step, and against itself split, dealt and shared out in other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from groups import Recorder, assert_same_gradients, mixed_groups, random_group, take_update
from peak import peak_bytes
from plain_step import plain_logprobs, plain_step
from ranks import on_ranks

from p2o.algorithm.advantages import group_advantages
from p2o.algorithm.policy_step import Objective
from p2o.algorithm.training_set import TrainingSet, training_sets
from p2o.config.schema import DistillationConfig, PolicyConfig
from p2o.policy.layout import LAYOUTS
from p2o.policy.model import Policy
from p2o.ranks import Ranks
from p2o.types import PLAIN, Group

FREE = 1e9  # a bound on the gradient's norm that none reaches
SAMPLING = {"temperature": 0.8, "max_new_tokens": 12}
LOSSES = {"grpo": {}, "dr_grpo": {"dual_clip": 0.0}, "dapo": {"clip_high": 0.5}}
NARROW = {"low": 0.6, "high": 1.7}
"""Bounds of the context mask that some of the random tokens leave."""
Tiny = Callable[..., Policy]


def configured(loss: str = "grpo", **changes: Any) -> PolicyConfig:
    return PolicyConfig(**{"loss": loss, "max_grad_norm": FREE, "dual_clip": 1.5, **LOSSES[loss], **changes})


def run(
    policy: Policy,
    config: PolicyConfig,
    distillation: DistillationConfig,
    groups: Sequence[Group] | None = None,
    optimizer: Recorder | None = None,
    **more: Any,
) -> tuple[Recorder, SimpleNamespace]:
    recorder = optimizer or Recorder(policy.trainable)
    groups = mixed_groups() if groups is None else groups
    metrics = take_update(policy, recorder, groups, config, distillation, seed=3, **SAMPLING, **more)
    return recorder, metrics


@pytest.fixture(scope="module")
def references() -> dict[Any, Any]:
    return {}


@pytest.mark.parametrize("kind", ["off", "replace", "importance", "mask"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_plain_float64_step(
    layout: str, loss: str, kind: str, tiny_policy: Tiny, references: dict[Any, Any]
) -> None:
    policy = tiny_policy()
    config = configured(loss, layout=layout, micro_batch_tokens=70, head_chunk_tokens=7)
    distillation = DistillationConfig(kind=kind, **NARROW)
    if (loss, kind) not in references:
        references[loss, kind] = plain_step(policy, mixed_groups(), config, distillation, **SAMPLING)
    expected = references[loss, kind]
    recorder, metrics = run(policy, config, distillation)
    assert_same_gradients(recorder.gradients[0], expected.gradients)
    assert metrics.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-6)
    assert metrics.entropy == pytest.approx(expected.entropy, rel=1e-5)
    assert metrics.mean_ratio == pytest.approx(expected.mean_ratio, rel=1e-5)
    assert metrics.trained_tokens == expected.tokens
    assert metrics.clip_fraction == pytest.approx(expected.clipped / expected.kept)
    assert (metrics.clip_fraction > 0) == (kind == "importance"), "on policy nothing is clipped"
    assert (metrics.masked_fraction > 0) == (kind == "mask"), "the bounds are narrow enough to matter"
    norm = torch.stack([g.norm() for g in expected.gradients.values()]).norm()
    assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_tuning_too(layout: str, tiny_policy: Tiny) -> None:
    policy = tiny_policy("full")
    config = configured(layout=layout, micro_batch_tokens=70, head_chunk_tokens=7)
    distillation = DistillationConfig(kind="mask", **NARROW)
    expected = plain_step(policy, mixed_groups(), config, distillation, **SAMPLING)
    assert_same_gradients(run(policy, config, distillation)[0].gradients[0], expected.gradients)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_peak_is_a_fraction_of_that_with_all_logits(layout: str, loss: str, tuning: str, tiny_policy: Tiny) -> None:
    """Against the plain padded step in float32, with a vocabulary that makes the logits what it holds."""
    policy = tiny_policy(tuning)
    policy.causal_lm.resize_token_embeddings(16384, mean_resizing=False).requires_grad_(tuning == "full")
    taught = [group for group in mixed_groups() if len(set(group.rewards)) > 1]
    prompts = [group.plain_prompt for group in taught for _ in group.rollouts]
    answers = [rollout.tokens for group in taught for rollout in group.rollouts]
    plain = peak_bytes(lambda: plain_logprobs(policy.module, prompts, answers, 0.8)[0].sum().backward())
    policy.module.zero_grad()
    config = configured(loss, layout=layout, head_chunk_tokens=8)
    ours = peak_bytes(lambda: run(policy, config, DistillationConfig(kind="replace")))
    assert ours < plain / (4 if tuning == "full" else 12)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_checkpointed_layers_give_the_same_gradient_and_keep_less(tuning: str, tiny_policy: Tiny) -> None:
    kept: dict[bool, int] = {}
    gradients = {}
    for checkpointed in (False, True):
        policy = tiny_policy(tuning, gradient_checkpointing=checkpointed)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=sizes: (n.append(t.nbytes), t)[1], lambda t: t):
            recorder, _ = run(policy, configured(layout="shared_prefix"), DistillationConfig(kind="replace"))
        kept[checkpointed], gradients[checkpointed] = sum(sizes), recorder.gradients[0]
    assert_same_gradients(gradients[True], gradients[False], tolerance=1e-6)
    assert kept[True] < kept[False] / 2


@pytest.mark.parametrize("kind", ["off", "importance", "mask"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_does_not_depend_on_how_the_batch_is_split(layout: str, kind: str, tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    distillation = DistillationConfig(kind=kind, **NARROW)
    whole, whole_metrics = run(policy, configured(layout=layout, micro_batch_tokens=10_000), distillation)
    for tokens in (1, 40, 90):
        config = configured(layout=layout, micro_batch_tokens=tokens, head_chunk_tokens=tokens)
        parts, metrics = run(policy, config, distillation)
        assert_same_gradients(parts.gradients[0], whole.gradients[0], tolerance=2e-5)
        assert metrics.loss == pytest.approx(whole_metrics.loss, rel=1e-4, abs=1e-6)
        assert metrics.masked_fraction == whole_metrics.masked_fraction


def test_shared_prefixes_spend_fewer_tokens(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    spent = [
        run(policy, configured(layout=layout), DistillationConfig(kind="replace"))[1].forward_tokens
        for layout in ("shared_prefix", "packed", "padded")
    ]
    live = [group for group in mixed_groups() if len(set(group.rewards)) > 1]
    prompts = sum(len(group.plain_prompt) for group in live)
    answers = sum(len(rollout.tokens) - 1 for group in live for rollout in group.rollouts)
    assert spent[:2] == [prompts + answers, 4 * prompts + answers]
    assert spent[2] > spent[1]


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_masked_tokens_count_in_the_denominator_only_where_asked(denominator: str, tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    distillation = DistillationConfig(kind="mask", mask_denominator=denominator, **NARROW)
    expected = plain_step(policy, mixed_groups(), configured(), distillation, **SAMPLING)
    recorder, metrics = run(policy, configured(), distillation)
    assert_same_gradients(recorder.gradients[0], expected.gradients)
    assert 0 < expected.kept < expected.tokens == metrics.trained_tokens


def test_both_denominators_differ_by_the_share_of_kept_tokens(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    everything, kept = (
        run(policy, configured(), DistillationConfig(kind="mask", mask_denominator=d, **NARROW))[0].gradients[0]
        for d in ("all", "kept")
    )
    expected = plain_step(policy, mixed_groups(), configured(), DistillationConfig(kind="mask", **NARROW), **SAMPLING)
    scaled = {name: g * expected.kept / expected.tokens for name, g in kept.items()}
    assert_same_gradients(everything, scaled, tolerance=1e-5)


def test_a_step_whose_every_token_is_masked_is_not_taken(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    groups = [mixed_groups()[4]]
    recorder, metrics = run(policy, configured(), DistillationConfig(kind="mask", low=0.999999, high=1.000001), groups)
    assert recorder.gradients == []
    assert (metrics.steps, metrics.skipped, metrics.masked_fraction, metrics.live) == (0, 0, 1.0, 1)


def test_positive_only_drops_templated_failures_alone(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    distillation = DistillationConfig(kind="replace", positive_only=True)
    expected = plain_step(policy, mixed_groups(), configured(), distillation, **SAMPLING)
    recorder, metrics = run(policy, configured(), distillation)
    assert_same_gradients(recorder.gradients[0], expected.gradients)
    assert metrics.trained_samples == 4 + 3 + 1, "all plain ones, and the templated ones above their group's mean"


@pytest.mark.parametrize("kind", ["importance", "mask"])
@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_later_steps_compare_with_the_log_probs_from_before_the_first(
    layout: str, kind: str, tiny_policy: Tiny
) -> None:
    policy = tiny_policy()
    config = configured(layout=layout, updates_per_round=2, micro_batch_tokens=70)
    distillation = DistillationConfig(kind=kind, **NARROW)
    groups = mixed_groups()
    objective = Objective(config, distillation, **SAMPLING)
    sets = training_sets([objective.advantages(g) for g in groups], 2, distillation, seed=3)
    dealt = [[g for g in groups if g.problem.id in s.problem_ids] for s in sets]
    assert [len(part) for part in dealt] == [2, 1]

    recorder, metrics = run(policy, config, distillation, optimizer=Recorder(policy.trainable, learning_rate=5.0))
    first, second = recorder.weights
    assert metrics.steps == len(recorder.gradients) == 2
    assert metrics.clip_fraction > 0, "the second step is off policy far enough to be clipped"
    for part, weights, got in zip(dealt, (first, second), recorder.gradients, strict=True):
        expected = plain_step(policy, part, config, distillation, **SAMPLING, weights=weights, weights_before=first)
        assert_same_gradients(got, expected.gradients)


def test_groups_without_a_signal_cost_no_forward_pass(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    calls: list[int] = []
    policy.causal_lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    dead = [mixed_groups()[1], mixed_groups()[3]]
    recorder, metrics = run(policy, configured(updates_per_round=2), DistillationConfig(), dead)
    assert calls == []
    assert recorder.gradients == []
    assert (metrics.all_fail, metrics.all_pass, metrics.live, metrics.trained_tokens) == (1, 1, 0, 0)
    assert run(policy, configured(), DistillationConfig(), [])[1].steps == 0

    with_dead, without = (
        run(policy, configured(), DistillationConfig(), groups)[0].gradients[0]
        for groups in (mixed_groups(), [g for i, g in enumerate(mixed_groups()) if i not in (1, 3)])
    )
    assert_same_gradients(with_dead, without, tolerance=1e-5)


def test_one_forward_pass_a_micro_batch_and_none_for_old_log_probs_on_policy(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    calls: list[bool] = []
    policy.causal_lm.model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    _, metrics = run(policy, configured(micro_batch_tokens=10_000), DistillationConfig(kind="mask"))
    assert (calls, metrics.scored_tokens) == ([True], 0)
    calls.clear()
    two = configured(micro_batch_tokens=10_000, updates_per_round=2)
    _, metrics = run(policy, two, DistillationConfig(kind="mask"))
    assert calls == [False, True, True]
    assert 0 < metrics.scored_tokens < metrics.trained_tokens, "the second step's tokens"


def test_the_gradient_is_clipped_to_its_norm_once_over_all_tensors(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    free, metrics = run(policy, configured(), DistillationConfig())
    bound = metrics.grad_norm / 4
    clipped, again = run(policy, configured(max_grad_norm=bound), DistillationConfig())
    assert again.grad_norm == pytest.approx(metrics.grad_norm)
    quarter = {name: g / 4 for name, g in free.gradients[0].items()}
    assert_same_gradients(clipped.gradients[0], quarter, tolerance=1e-5)


def test_the_schedule_keeps_time_with_the_rounds(tiny_policy: Tiny) -> None:
    class Schedule:
        steps = 0

        def step(self) -> None:
            self.steps += 1

    schedule = Schedule()
    run(tiny_policy(), configured(updates_per_round=3), DistillationConfig(), mixed_groups()[:2], scheduler=schedule)
    assert schedule.steps == 3


def test_progress_counts_every_completion_token_once(tiny_policy: Tiny) -> None:
    seen: list[tuple[int, int]] = []
    _, metrics = run(
        tiny_policy(),
        configured(updates_per_round=2, micro_batch_tokens=40),
        DistillationConfig(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (metrics.trained_tokens, metrics.trained_tokens)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("live", [slice(None), slice(0, 2)], ids=["all share", "one has nothing"])
@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize(("loss", "kind"), [("grpo", "mask"), ("dr_grpo", "importance")])
def test_ranks_together_take_the_step_that_one_alone_would_take(
    loss: str, kind: str, layout: str, live: slice, tiny_policy: Tiny
) -> None:
    groups, distillation = mixed_groups()[live], DistillationConfig(kind=kind, **NARROW)
    config = configured(loss, layout=layout, updates_per_round=2)
    expected, whole = run(tiny_policy(), config, distillation, groups)
    policies = [tiny_policy() for _ in range(2)]
    results = on_ranks(2, lambda ranks: run(policies[ranks.rank], config, distillation, groups, ranks=ranks))
    for recorder, metrics in results:
        assert len(recorder.gradients) == len(expected.gradients)
        for got, wanted in zip(recorder.gradients, expected.gradients, strict=True):
            assert_same_gradients(got, wanted, tolerance=2e-5)
        for name in vars(whole).keys() - {"forward_tokens"}:
            assert getattr(metrics, name) == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("layout", ["padded", "packed", "shared_prefix"])
def test_ranks_share_every_sample_once(layout: str) -> None:
    config = DistillationConfig(kind="mask")
    scored = [group_advantages(group, scale_by_std=True, baseline="group") for group in mixed_groups()]
    (whole,) = training_sets(scored, 1, config, seed=0)
    shares = [whole.share(layout, Ranks(rank, 3)) for rank in range(3)]

    def rows(part: TrainingSet) -> list[tuple[object, ...]]:
        ends = [0, *accumulate(len(sample.completion) for sample in part.samples)]
        logprobs = [tuple(part.engine_logprobs[a:b].tolist()) for a, b in pairwise(ends)]
        flags = zip(part.advantages.tolist(), part.templated.tolist(), part.own_prompt.tolist(), strict=True)
        return list(zip(part.problem_ids, part.samples, logprobs, flags, strict=True))

    assert sorted(map(repr, rows(whole))) == sorted(repr(row) for share in shares for row in rows(share))
    if layout == "shared_prefix":
        prompts = [{sample.prompt for sample in share.samples} for share in shares]
        assert sum(map(len, prompts)) == len(set.union(*prompts)), "a prompt is computed by one rank"


def test_the_engines_mismatch_is_measured_where_both_speak_of_the_same_prompt(tiny_policy: Tiny) -> None:
    """Two plain answers and a templated one, all with engine log-probs 0.1 above the trainer's."""
    policy = tiny_policy()
    first = random_group("q", (1, 0, 1), (PLAIN, PLAIN, "a"), seed=9)
    step = take_update(
        policy,
        Recorder(policy.trainable),
        [first],
        configured(),
        DistillationConfig(kind="replace"),
        seed=0,
        **SAMPLING,
    )
    assert step.mismatch_mean > 0.1
    exact = [_exact(policy, r.prompt_tokens, r.tokens) for r in first.rollouts]
    shifted = [
        replace(r, logprobs=tuple(x + (0.1 if r.plain else 5.0) for x in logprobs))
        for r, logprobs in zip(first.rollouts, exact, strict=True)
    ]
    _, metrics = run(
        policy, configured(), DistillationConfig(kind="replace"), [replace(first, rollouts=tuple(shifted))]
    )
    assert metrics.mismatch_mean == pytest.approx(0.1, abs=1e-4)
    assert metrics.mismatch_k1 == pytest.approx(0.1, abs=1e-4)
    assert metrics.mismatch_max == pytest.approx(0.1, abs=1e-3)
    assert metrics.mismatch_k3 == pytest.approx(torch.tensor(-0.1).expm1().item() + 0.1, abs=1e-4)


@torch.no_grad()
def _exact(policy: Policy, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> list[float]:
    logits = policy.causal_lm(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return (
        torch.log_softmax(logits / SAMPLING["temperature"], -1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    )


def test_another_layout_than_padded_needs_attention_by_segments(tiny_policy: Tiny) -> None:
    policy = tiny_policy()
    policy.causal_lm.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"policy\.layout=packed needs model\.attn_implementation=sdpa"):
        run(policy, configured(layout="packed"), DistillationConfig())
    expected = plain_step(policy, mixed_groups(), configured(), DistillationConfig(kind="replace"), **SAMPLING)
    recorder, _ = run(policy, configured(layout="padded"), DistillationConfig(kind="replace"))
    assert_same_gradients(recorder.gradients[0], expected.gradients)
