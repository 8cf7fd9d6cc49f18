"""Evolution through the real gepa package."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from word_task import HARD, Silent, Task, WordReflector, run, solves

from p2o.algorithm.assignment import greedy_cover
from p2o.evolution.gepa_phase import metric_call_budget, split
from p2o.evolution.monitor import EvolutionProgress
from p2o.types import PLAIN, Grade, Outcome, Phase, Request, Rollout


@pytest.mark.parametrize(
    ("candidates", "dev", "calls"),
    [
        (72, 300, 11_040),  # published: N = 108
        (6, 16, 16 + 30 + 35 * 10 + 3 * 16),  # N = floor(4 * log2 6 = 10.34) = 10
        (12, 100, 100 + 60 + 35 * 18 + 4 * 100),  # N = 1.5 * 12 = 18
    ],
)
def test_the_published_budget(candidates: int, dev: int, calls: int) -> None:
    assert metric_call_budget(candidates, dev) == calls


def test_dev_is_at_most_half_and_the_split_does_not_depend_on_the_order() -> None:
    train, dev = split(HARD, 12, seed=1)
    assert (len(train), len(dev)) == (20, 12)
    assert {p.id for p in train} | {p.id for p in dev} == {p.id for p in HARD}
    assert split(HARD[::-1], 12, seed=1) == (train, dev)
    assert split(HARD, 12, seed=2) != (train, dev)
    assert [len(part) for part in split(HARD[:5], 300, seed=1)] == [3, 2]


def test_the_pool_comes_to_cover_all_families(tmp_path: Path) -> None:
    evolution, _, _ = run(tmp_path)
    assert evolution.stop_reason == "dev_solved"
    problems = {problem.id: problem for problem in HARD}
    cover = greedy_cover(evolution.pool)
    assert frozenset().union(*(t.covers for t in cover)) == set(evolution.dev_ids)
    assert 2 <= len(cover) <= 4
    for template in evolution.pool:
        solved = {i for i in evolution.dev_ids if solves(template.text, problems[i])}
        assert template.covers == solved
        assert template.dev_score == pytest.approx(len(solved) / 12)
        assert template.epoch == 1
    assert evolution.pool[0].text == ""
    assert evolution.seed_dev_score == 0.0
    ids = {template.id for template in evolution.pool}
    assert all(set(t.parents) <= ids for t in evolution.pool)
    assert all(t.parents for t in evolution.pool[1:])
    assert set(evolution.front) < set(evolution.pool)  # as far as the cover, without the empty and the dominated
    assert frozenset().union(*(t.covers for t in evolution.front)) == set(evolution.dev_ids)
    assert "" not in {t.text for t in evolution.front}
    assert set(evolution.train_ids) | set(evolution.dev_ids) == set(problems)


def test_calls_are_batched_and_nothing_is_evaluated_twice(tmp_path: Path) -> None:
    evolution, task, reflector = run(tmp_path)
    pairs = task.pairs()
    assert len(pairs) == len(set(pairs)) == evolution.metric_calls
    assert task.ledger.by_phase[Phase.EVOLUTION].metric_calls == evolution.metric_calls
    assert len(task.calls) <= 1 + 3 * evolution.iterations  # the empty template on dev; parents, children, dev
    assert len(reflector.calls) == evolution.iterations
    assert sum(map(len, reflector.calls)) == evolution.reflection_calls
    solved = 3 * evolution.iterations - evolution.reflection_calls
    assert solved < evolution.iterations  # parents that solved their whole minibatch: nothing to reflect on
    texts = {r.template for call in task.calls for r in call}
    assert not any(p.answer in text for text in texts for p in HARD)  # leaks are never tried
    assert len({r.seed for call in task.calls for r in call}) == len(pairs)


def test_rejected_proposals_are_counted_by_kind(tmp_path: Path) -> None:
    evolution, _, _ = run(tmp_path)
    assert set(evolution.rejected) == {"unfenced", "leak", "known", "not_better"}
    assert evolution.leaked == evolution.rejected["leak"]
    accepted = len(evolution.pool) - 1
    assert accepted + sum(evolution.rejected.values()) == evolution.reflection_calls


def test_what_a_proposal_is_reflected_on(tmp_path: Path) -> None:
    _, _, reflector = run(tmp_path)
    first = reflector.calls[0]
    train = {p.question: p for p in HARD}
    for job in first:
        assert job.template == ""
        assert len(job.examples) == 3
        for example in job.examples:
            assert example.answer == train[example.question].answer
            assert example.response == f"worked on {example.question} \udcff"
            assert (example.outcome, example.extracted, example.reward) == (Outcome.WRONG, "x", 0.0)
    questions = [example.question for job in first for example in job.examples]
    assert len(set(questions)) == 9  # within a pass no question comes twice
    assert len({job.seed for call in reflector.calls for job in call}) == sum(map(len, reflector.calls))


def test_results_follow_from_the_seed(tmp_path: Path) -> None:
    a, task, _ = run(tmp_path / "a")
    b, again, _ = run(tmp_path / "b", hard=HARD[::-1])
    other, _, _ = run(tmp_path / "c", epoch=2)
    assert a == b
    assert task.calls == again.calls
    assert a.dev_ids != other.dev_ids


@pytest.mark.parametrize(
    ("fields", "reflector", "reason"),
    [
        ({"metric_calls": 40}, WordReflector, "budget"),
        ({"max_iterations": 2, "parents": 1}, WordReflector, "max_iterations"),
        ({"max_failures": 3}, Silent, "no_proposals"),
    ],
)
def test_stop_conditions(tmp_path: Path, fields: dict[str, int], reflector: type[WordReflector], reason: str) -> None:
    evolution, _, _ = run(tmp_path, Task(), reflector(), fields=fields)
    assert evolution.stop_reason == reason
    if reason == "budget":
        assert 40 <= evolution.metric_calls < 40 + 3 * (2 * 3 + 12)
    if reason == "max_iterations":
        assert evolution.iterations == 2
    if reason == "no_proposals":
        assert evolution.iterations == 3
        assert evolution.rejected == {"timeout": 9}
        assert [t.text for t in evolution.pool] == [""]
        assert evolution.front == ()


def test_a_hard_set_of_one_or_none_is_left_alone(tmp_path: Path) -> None:
    for hard in ([], HARD[:1]):
        evolution, task, _ = run(tmp_path, hard=hard)
        assert evolution.stop_reason == "too_few_questions"
        assert not task.calls
        assert greedy_cover(evolution.pool) == ()


def test_a_hard_set_of_two_and_minibatches_larger_than_train(tmp_path: Path) -> None:
    evolution, _, reflector = run(tmp_path, hard=HARD[:2])
    assert len(evolution.dev_ids) == len(evolution.train_ids) == 1
    assert evolution.stop_reason == "dev_solved"
    assert all(len(job.examples) == 1 for call in reflector.calls for job in call)


def test_scores_are_means_over_samples_and_covers_go_by_the_threshold(tmp_path: Path) -> None:
    class HalfRight(Task):
        def _rollout(self, request: Request) -> Rollout:
            rollout = super()._rollout(request)
            if rollout.correct and request.index == 0:
                return Rollout(
                    **{**_fields(rollout), "grade": Grade(Outcome.WRONG, 0.0, "first"), "text": "the wrong one"}
                )
            return rollout

    evolution, task, _ = run(tmp_path, HalfRight(), fields={"dev_samples": 4, "solve_threshold": 0.75})
    assert {index for *_, index in task.pairs()} == {0, 1, 2, 3}
    assert len(task.pairs()) == 4 * evolution.metric_calls
    best = max(evolution.pool, key=lambda t: t.dev_score)
    assert best.dev_score == pytest.approx(0.75 * len(best.covers) / 12)
    assert best.covers

    strict, _, _ = run(
        tmp_path / "strict", HalfRight(), fields={"dev_samples": 4, "solve_threshold": 0.8, "metric_calls": 90}
    )
    assert all(not template.covers for template in strict.pool)


def test_warm_start_templates_are_scored_first_and_join_the_pool(tmp_path: Path) -> None:
    warm = ["please add it", "please order it", "says answer-sum-17", "please add  it", "useless"]
    evolution, task, _ = run(tmp_path, warm_start=warm)
    assert [t.text for t in evolution.pool[:4]] == ["", "please add it", "please order it", "useless"]
    assert all(t.parents == () for t in evolution.pool[:4])
    assert evolution.pool[1].covers
    assert (evolution.rejected["leak"], evolution.rejected["known"]) >= (1, 1)
    dev = set(evolution.dev_ids)
    scored = [{r.template for r in call} for call in task.calls if {r.problem.id for r in call} <= dev]
    assert scored[:2] == [{""}, {"please add it", "please order it", "useless"}]
    assert evolution.stop_reason == "dev_solved"
    rejected, _, _ = run(tmp_path / "b", warm_start=["says answer-sum-17"])
    plain, _, _ = run(tmp_path / "c")
    assert rejected.pool == plain.pool


def test_progress_and_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[EvolutionProgress] = []
    evolution, _, _ = run(tmp_path / "evolution", progress=seen.append)
    assert [p.metric_calls for p in seen] == sorted(p.metric_calls for p in seen)
    assert seen[0] == EvolutionProgress(0, 12, 400, 0.0, 1)
    last = seen[-1]
    assert (last.iteration, last.metric_calls) == (evolution.iterations, evolution.metric_calls)
    assert (last.pool_size, last.best_dev_score) == (len(evolution.pool), max(t.dev_score for t in evolution.pool))
    value = json.loads(json.dumps(evolution.to_json()))
    assert [t["id"] for t in value["pool"]] == [t.id for t in evolution.pool]
    assert value["pool"][0]["id"] == PLAIN
    assert capfd.readouterr() == ("", "")
    assert {path.parent.name for path in tmp_path.rglob("*")} >= {"evolution"}
    assert not list(tmp_path.rglob("*.bin*"))
    assert [path.name for path in tmp_path.iterdir()] == ["evolution"]  # ids with "../" lead nowhere


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {**asdict(rollout), "grade": rollout.grade}


@pytest.mark.parametrize("limit", [20, 47, 90, 200])
def test_what_the_run_may_spend_is_never_exceeded(limit: int, tmp_path: Path) -> None:
    """Dev takes 12 calls and a proposal at most 2 * 3 + 12: iterations become narrower, then there is none."""
    evolution, task, _ = run(tmp_path, limit=limit)
    assert task.ledger.totals().metric_calls == evolution.metric_calls <= limit
    if limit < 30:
        assert (evolution.stop_reason, evolution.metric_calls, len(evolution.pool)) == ("run_budget", 0, 1)
    else:
        assert evolution.reflection_calls > 0
        assert evolution.stop_reason == "dev_solved" or limit - evolution.metric_calls < 18


def test_a_limit_beyond_the_need_changes_nothing(tmp_path: Path) -> None:
    free, _, _ = run(tmp_path / "free")
    limited, _, _ = run(tmp_path / "limited", limit=100_000)
    assert limited == free


def test_carried_over_templates_are_as_many_as_the_limit_pays_for(tmp_path: Path) -> None:
    texts = [f"Work number {word}." for word in ("one", "two", "three", "four")]
    evolution, _, _ = run(tmp_path, warm_start=texts, limit=12 + 2 * 18)
    assert evolution.metric_calls <= 48
    assert {template.text for template in evolution.pool} & set(texts) == set(texts[:2])
