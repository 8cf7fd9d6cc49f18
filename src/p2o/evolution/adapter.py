"""Where gepa meets p2o: templates are its candidates, hard questions its data, the caller's sampler its evaluator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gepa.core.adapter import EvaluationBatch, GEPAAdapter, ProposalFn

from p2o.evolution.journal import Journal, JournalError
from p2o.evolution.reflectors import Feedback
from p2o.faults import fault_point
from p2o.types import Outcome, Phase, Problem, Request, Rollout, derive_seed, template_id

Evaluate = Callable[[Sequence[Request]], list[Rollout]]
"""One graded rollout per request, in any order, all by one policy version."""

COMPONENT = "template"
"""The one text of gepa's candidates."""

Candidate = dict[str, str]


class Questions:
    """A gepa data loader. Its ids are made here: gepa names files after them, and train and dev must not share any."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self._problems = {f"{name}-{i:05d}": problem for i, problem in enumerate(problems)}

    def all_ids(self) -> list[str]:
        return list(self._problems)

    def fetch(self, ids: Sequence[str]) -> list[Problem]:
        return [self._problems[i] for i in ids]

    def __len__(self) -> int:
        return len(self._problems)


@dataclass(frozen=True, slots=True)
class Score:
    """What a template earned on a question: the mean ``reward`` of its samples, and the first of the worst of them."""

    reward: float
    outcome: Outcome
    extracted: str | None
    text: str
    finish_reason: str


class TemplateAdapter(GEPAAdapter[Problem, Feedback, str | None]):
    """Scores templates on questions: all pairs that gepa asks for at once, in one call of ``evaluate``.

    A pair is scored once in an evolution: its rollouts' seeds do not depend on when it is asked for, so a second
    time would give the same. A metric call is one pair, whatever ``samples`` is; gepa's budget and the ledger count the
    pairs that were really evaluated. The texts of dev answers are not kept: nobody reflects on them.
    """

    propose_new_texts: ProposalFn | None = None

    def __init__(
        self, evaluate: Evaluate, journal: Journal, *, samples: int, seed: int, dev_ids: Collection[str]
    ) -> None:
        self._evaluate = evaluate
        self._journal = journal
        self._samples = samples
        self._seed = seed
        self._dev_ids = frozenset(dev_ids)
        self._scores: dict[tuple[str, str], Score] = {}
        self._version: int | None = None

    def evaluate(
        self, batch: list[Problem], candidate: Candidate, capture_traces: bool = False
    ) -> EvaluationBatch[Feedback, str | None]:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[Candidate, list[Problem]]]) -> list[EvaluationBatch]:
        """Scores for several (template, questions) pairs in one evaluation call."""
        wanted: dict[tuple[str, str], Problem] = {}
        fresh = []
        for candidate, batch in items:
            pairs = {(candidate[COMPONENT], problem.id): problem for problem in batch}
            new = {pair: pairs[pair] for pair in pairs if pair not in self._scores and pair not in wanted}
            wanted |= new
            fresh.append(len(new))
        if wanted:
            self._score([(template, problem) for (template, _), problem in wanted.items()])
        return [self._batch(candidate[COMPONENT], batch, n) for (candidate, batch), n in zip(items, fresh, strict=True)]

    def make_reflective_dataset(
        self, candidate: Candidate, eval_batch: EvaluationBatch, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The minibatch's :class:`Feedback` as mappings."""
        return {COMPONENT: [asdict(feedback) for feedback in eval_batch.trajectories or ()]}

    def _score(self, pairs: list[tuple[str, Problem]]) -> None:
        requests = [
            Request(problem, index, derive_seed(self._seed, problem.id, template_id(template), index), template)
            for template, problem in pairs
            for index in range(self._samples)
        ]
        inputs = [[r.problem.id, r.index, r.seed, r.template] for r in requests]
        result = self._journal.call("evaluate", inputs, lambda: self._run(requests, len(pairs)))
        if self._version not in (None, result["policy_version"]):
            raise JournalError(
                f"{self._journal.path}: begun under policy version {self._version}, continued under "
                f"{result['policy_version']}: delete the folder {self._journal.path.parent} to evolve again"
            )
        self._version = result["policy_version"]
        rollouts = {(r["problem"], r["template"], r["index"]): r for r in result["rollouts"]}
        for template, problem in pairs:
            samples = [rollouts[problem.id, template_id(template), index] for index in range(self._samples)]
            self._scores[template, problem.id] = _score(samples)

    def _run(self, requests: list[Request], pairs: int) -> dict[str, Any]:
        """Evaluate, and return what the evolution needs of the rollouts as JSON."""
        rollouts = self._evaluate(requests)
        made = {(r.problem_id, r.template_id, r.index) for r in rollouts}
        asked = {(r.problem.id, template_id(r.template), r.index) for r in requests}
        versions = {r.policy_version for r in rollouts}
        if made != asked or len(rollouts) != len(requests) or len(versions) != 1:
            raise RuntimeError(
                f"evaluate returned {len(rollouts)} rollouts of the policy versions {sorted(versions)} for "
                f"{len(requests)} requests; it has to return one per request, all of one version"
            )
        self._journal.ledger.add(Phase.EVOLUTION, metric_calls=pairs)
        fault_point("templates evaluated, not journaled")
        return {"policy_version": versions.pop(), "rollouts": [self._rollout_to_json(r) for r in rollouts]}

    def _rollout_to_json(self, rollout: Rollout) -> dict[str, Any]:
        return {
            "problem": rollout.problem_id,
            "template": rollout.template_id,
            "index": rollout.index,
            "reward": rollout.reward,
            "outcome": rollout.grade.outcome.value,
            "extracted": rollout.grade.extracted,
            "text": "" if rollout.problem_id in self._dev_ids else rollout.text,
            "finish_reason": rollout.finish_reason,
            "prompt_tokens": len(rollout.prompt_tokens),
            "tokens": len(rollout.tokens),
        }

    def _batch(self, template: str, batch: list[Problem], fresh: int) -> EvaluationBatch:
        scores = [self._scores[template, problem.id] for problem in batch]
        return EvaluationBatch(
            outputs=[score.extracted for score in scores],
            scores=[score.reward for score in scores],
            trajectories=[
                Feedback(
                    question=problem.question,
                    response=score.text,
                    answer=problem.answer,
                    outcome=score.outcome,
                    extracted=score.extracted,
                    reward=score.reward,
                    finish_reason=score.finish_reason,
                )
                for problem, score in zip(batch, scores, strict=True)
            ],
            num_metric_calls=fresh,
        )


def _score(samples: Sequence[Mapping[str, Any]]) -> Score:
    worst = min(samples, key=lambda sample: sample["reward"])
    return Score(
        reward=sum(sample["reward"] for sample in samples) / len(samples),
        outcome=Outcome(worst["outcome"]),
        extracted=worst["extracted"],
        text=worst["text"],
        finish_reason=worst["finish_reason"],
    )
