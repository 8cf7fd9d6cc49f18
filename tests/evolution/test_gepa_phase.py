"""Evolution through the real gepa package, on a task small enough to be a plain function."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2o.config.schema import GepaConfig
from p2o.evolution.cover import greedy_cover
from p2o.evolution.gepa_phase import Evolution, evolve, metric_call_budget, split
from p2o.evolution.journal import JournalError
from p2o.evolution.reflectors import Reflection, ReflectionJob
from p2o.evolution.watch import EvolutionProgress
from p2o.rollout.ledger import Ledger
from p2o.types import PLAIN, Grade, Outcome, Phase, Problem, Request, Rollout, template_id

WORDS = {"sum": "add", "sort": "order", "count": "tally", "reverse": "mirror"}
"""The word that a template must contain for a family of questions to be solved."""

HARD = [
    Problem(f"../{family}/{i}", f"{family} of item {i}", f"answer-{family}-{i}7") for family in WORDS for i in range(8)
]


def solves(template: str, problem: Problem) -> bool:
    return WORDS[problem.question.split()[0]] in template.split()


@dataclass
class Task:
    """Grades by the word rule; with ``dies_at=n`` its n-th call ends in an error, as a kill would."""

    dies_at: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    calls: list[list[Request]] = field(default_factory=list)
    version: int = 3

    def __call__(self, requests: Sequence[Request]) -> list[Rollout]:
        self.calls.append(list(requests))
        if len(self.calls) == self.dies_at:
            raise RuntimeError("killed in evaluate")
        self.ledger.add(Phase.EVOLUTION, generated_tokens=3 * len(requests), rollouts=len(requests))
        rollouts = [self._rollout(request) for request in requests]
        random.Random(len(requests)).shuffle(rollouts)  # nothing may be joined by position
        return rollouts

    def _rollout(self, request: Request) -> Rollout:
        right = solves(request.template, request.problem)
        grade = Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right), "x")
        return Rollout(
            problem_id=request.problem.id,
            template_id=template_id(request.template),
            index=request.index,
            prompt_tokens=(1, 2),
            tokens=(3, 4, 5),
            logprobs=(0.0, 0.0, 0.0),
            text=f"worked on {request.problem.question} \udcff",
            finish_reason="stop",
            grade=grade,
            policy_version=self.version,
        )

    def pairs(self) -> list[tuple[str, str, int]]:
        return [(r.template, r.problem.id, r.index) for call in self.calls for r in call]


@dataclass
class WordReflector:
    """Adds the word for a failed example's family, or noise; with its own ``rng`` it never answers twice alike."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    dies_at: int | None = None
    deterministic: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    failures: Counter[str] = field(default_factory=Counter)
    calls: list[list[ReflectionJob]] = field(default_factory=list)

    def check(self) -> None: ...

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        self.calls.append(list(jobs))
        if len(self.calls) == self.dies_at:
            raise RuntimeError("killed in reflect")
        self.ledger.add(Phase.REFLECTION, reflection_calls=len(jobs))
        return [self._reflect(job) for job in jobs]

    def _reflect(self, job: ReflectionJob) -> Reflection:
        rng = random.Random(job.seed) if self.deterministic else self.rng
        failed = [example for example in job.examples if not example.solved]
        kind = rng.random()
        if kind < 0.15:
            return Reflection(None, error="unfenced")
        if kind < 0.3:
            return Reflection(f"the answer is {failed[0].answer}")
        if kind < 0.5:
            return Reflection(f"think {job.seed % 10}")
        word = WORDS[rng.choice(failed).question.split()[0]]
        return Reflection(f"please {word} it {rng.randrange(1000)}", raw="\ud800", prompt_tokens=5)


class Silent(WordReflector):
    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        self.calls.append(list(jobs))
        return [Reflection(None, error="timeout") for _ in jobs]


def config(**fields: Any) -> GepaConfig:
    defaults: dict[str, Any] = {"variant": "teacher_ref", "dev_size": 12, "parents": 3, "metric_calls": 400}
    return GepaConfig(**{**defaults, **fields})


def run(
    run_dir: Path, task: Task | None = None, reflector: WordReflector | None = None, /, **kwargs: Any
) -> tuple[Evolution, Task, WordReflector]:
    task, reflector = task or Task(), reflector or WordReflector()
    ledger = Ledger()
    task.ledger = reflector.ledger = ledger
    evolution = evolve(
        kwargs.pop("hard", HARD),
        task,
        reflector,
        kwargs.pop("config", None) or config(**kwargs.pop("fields", {})),
        epoch=kwargs.pop("epoch", 1),
        seed=7,
        run_dir=run_dir,
        count_tokens=lambda text: len(text.split()),
        ledger=ledger,
        **kwargs,
    )
    return evolution, task, reflector


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


# ---------------------------------------------------------------------- resume

SHORT = {"metric_calls": 110}


@pytest.mark.parametrize("where", ["evaluate", "reflect"])
def test_killed_at_any_call_it_ends_in_the_same_result_and_repeats_none(tmp_path: Path, where: str) -> None:
    whole, task, reflector = run(tmp_path / "whole", fields=SHORT)
    calls = len(task.calls) if where == "evaluate" else len(reflector.calls)
    for n in range(1, calls + 1):
        first_task, first_reflector = Task(), WordReflector()
        (first_task if where == "evaluate" else first_reflector).dies_at = n
        run_dir = tmp_path / f"{where}-{n}"
        with pytest.raises(RuntimeError, match=f"killed in {where}"):
            run(run_dir, first_task, first_reflector, fields=SHORT)
        again, rest, _ = run(run_dir, fields=SHORT)
        assert again == whole
        done = first_task.calls[:-1] if where == "evaluate" else first_task.calls
        assert done + rest.calls == task.calls
        assert rest.ledger.to_json() == task.ledger.to_json()


def test_a_reflector_that_never_answers_twice_alike_is_asked_once(tmp_path: Path) -> None:
    run(tmp_path, Task(), WordReflector(random.Random(1), deterministic=False), fields=SHORT)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(0, len(lines), 3):
        run_dir = tmp_path / str(kept)
        run_dir.mkdir()
        (run_dir / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        other = WordReflector(random.Random(kept + 2), deterministic=False)
        first, _, _ = run(run_dir, Task(), other, fields=SHORT)
        again, rest, silent = run(run_dir, Task(), WordReflector(random.Random(-1), deterministic=False), fields=SHORT)
        assert again == first
        assert not rest.calls
        assert not silent.calls


def test_a_torn_last_line_is_dropped_wherever_it_tears(tmp_path: Path) -> None:
    whole, task, _ = run(tmp_path, fields=SHORT)
    journal = (tmp_path / "journal.jsonl").read_bytes()
    for size in random.Random(0).sample(range(len(journal)), 12):
        run_dir = tmp_path / str(size)
        run_dir.mkdir()
        (run_dir / "journal.jsonl").write_bytes(journal[:size])
        again, rest, _ = run(run_dir, fields=SHORT)
        assert again == whole
        assert (run_dir / "journal.jsonl").read_bytes() == journal
        assert rest.calls == task.calls[len(task.calls) - len(rest.calls) :]


def test_a_finished_evolution_costs_nothing_and_books_the_same(tmp_path: Path) -> None:
    whole, task, _ = run(tmp_path)
    again, rest, reflector = run(tmp_path)
    assert again == whole
    assert not rest.calls
    assert not reflector.calls
    assert rest.ledger.to_json() == task.ledger.to_json()


@pytest.mark.parametrize(
    "kwargs",
    [{"hard": HARD[1:]}, {"fields": {"minibatch": 2}}, {"epoch": 2}, {"warm_start": ["please add it"]}],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_a_journal_of_another_evolution_is_refused_by_name(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(JournalError, match=rf"{tmp_path}/journal.jsonl.*delete the folder {tmp_path}"):
        run(tmp_path, **kwargs)


def test_another_policy_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, Task(dies_at=4))
    with pytest.raises(JournalError, match=f"policy version 3, continued under 4: delete the folder {tmp_path}"):
        run(tmp_path, Task(version=4))


def test_a_damaged_line_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"reward": 0.0', b'"reward": 1.0', 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"journal\.jsonl: line 3 is damaged"):
        run(tmp_path)


def test_gepa_s_pickle_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "gepa_state.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # would fail, or worse, if it were loaded
    evolution, _, _ = run(tmp_path)
    assert evolution.stop_reason == "dev_solved"
    assert not (tmp_path / "gepa_state.bin").exists()


def test_an_evaluator_that_loses_a_rollout_is_told_so(tmp_path: Path) -> None:
    class Loses(Task):
        def __call__(self, requests: Sequence[Request]) -> list[Rollout]:
            return super().__call__(requests)[1:]

    with pytest.raises(RuntimeError, match="evaluate returned 11 rollouts"):
        run(tmp_path, Loses())


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {**asdict(rollout), "grade": rollout.grade}
