"""From requests to graded rollouts, with the real engine and the real grading processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2o.config.schema import HfRollout, LoraTuning, RandomModel, RewardConfig
from p2o.policy.model import load_policy
from p2o.rewards import GraderPool
from p2o.rollout.engine import StalePolicyError
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.rollout.ledger import Ledger
from p2o.rollout.prompts import PromptRenderer, PromptTooLongError
from p2o.rollout.sampler import Sampler
from p2o.types import PLAIN, Outcome, Phase, Problem, Request, SamplingParams, derive_seed, template_id

SAMPLING = SamplingParams(1.0, 10)


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Sampler]:
    policy = load_policy(RandomModel(path=str(tmp_path / "tiny"), dtype="float32"), LoraTuning(r=4), seed=0)
    engine = HfEngine(policy, HfRollout(max_rows=4))
    engine.stop_ids = frozenset()  # each answer has ten tokens, whatever is drawn: none is empty
    engine.sync(3)
    renderer = PromptRenderer(policy.tokenizer, "{question}", 120)
    with GraderPool(RewardConfig(kind="exact", extract=["whole"])) as grader:
        yield Sampler(engine, renderer, grader, Ledger())


def requests(answers: dict[str, str] | None = None, template: str = "") -> list[Request]:
    return [
        Request(Problem(f"p{i}", f"question {i}", (answers or {}).get(f"p{i}", "none")), k, derive_seed(i, k), template)
        for i in range(3)
        for k in range(2)
    ]


def test_requests_become_graded_rollouts_in_order(sampler: Sampler) -> None:
    progress: list[int] = []
    first = sampler.sample(requests(), SAMPLING, phase=Phase.POLICY, version=3, progress=progress.append)
    assert [(r.problem_id, r.index) for r in first] == [(f"p{i}", k) for i in range(3) for k in range(2)]
    assert progress == [1, 2, 3, 4, 5, 6]
    assert {r.policy_version for r in first} == {3}
    assert {r.template_id for r in first} == {PLAIN}
    assert not any(r.correct for r in first)
    # The same seeds answer the same; with those answers as gold, exactly the first rollout of a problem is right.
    golds = {r.problem_id: r.text for r in first if r.index == 0}
    again = sampler.sample(requests(golds), SAMPLING, phase=Phase.POLICY, version=3)
    assert [r.tokens for r in again] == [r.tokens for r in first]
    assert [r.grade.outcome for r in again] == [Outcome.CORRECT, Outcome.WRONG] * 3
    assert [r.reward for r in again] == [1.0, 0.0] * 3


def test_a_template_reaches_the_prompt_and_the_rollout(sampler: Sampler) -> None:
    (plain, *_) = sampler.sample(requests(), SAMPLING, phase=Phase.EVOLUTION, version=3)
    (templated, *_) = sampler.sample(requests(template="Think."), SAMPLING, phase=Phase.EVOLUTION, version=3)
    assert templated.template_id == template_id("Think.")
    shown = sampler.renderer.tokenizer.decode(templated.prompt_tokens)
    assert shown == sampler.renderer.tokenizer.decode(plain.prompt_tokens).replace("question", "Think.\n\nquestion")


def test_the_ledger_books_every_token_under_its_phase(sampler: Sampler) -> None:
    rollouts = sampler.sample(requests(), SAMPLING, phase=Phase.VALIDATION, version=3)
    booked = sampler.ledger.by_phase[Phase.VALIDATION]
    assert booked.rollouts == 6
    assert booked.generated_tokens == sum(len(r.tokens) for r in rollouts)
    assert booked.prompt_tokens == sum(len(r.prompt_tokens) for r in rollouts)
    assert booked.seconds > 0
    assert sampler.ledger.totals().rollouts == 6


def test_a_prompt_over_the_limit_stops_everything_before_it_starts(sampler: Sampler) -> None:
    long = Request(Problem("far-too-long", "x" * 200, "1"), 0, 1)
    with pytest.raises(PromptTooLongError, match=r"problem far-too-long under template plain has 2.. tokens.* 120"):
        sampler.sample([*requests(), long], SAMPLING, phase=Phase.POLICY, version=3)
    assert sampler.ledger.totals().generated_tokens == 0


def test_a_stale_version_is_refused(sampler: Sampler) -> None:
    with pytest.raises(StalePolicyError):
        sampler.sample(requests(), SAMPLING, phase=Phase.POLICY, version=4)


def test_reflection_is_the_reference_models_and_booked_apart(sampler: Sampler) -> None:
    texts = ["improve " + "this " * 40, "and this"]
    replies = sampler.complete(texts, [1, 2], SAMPLING, version=3)
    assert len(replies) == 2
    booked = sampler.ledger.by_phase[Phase.REFLECTION]
    assert (booked.reflection_calls, booked.rollouts) == (2, 0)
    assert booked.generated_tokens == sum(len(r.tokens) for r in replies)
    assert replies[0].tokens != sampler.complete(texts, [3, 4], SAMPLING, version=3)[0].tokens
