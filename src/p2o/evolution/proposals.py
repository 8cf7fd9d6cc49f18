"""An iteration's proposals: which parents and minibatches gepa draws, and how their feedback becomes templates."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gepa.core.data_loader import DataLoader
from gepa.core.state import GEPAState
from gepa.proposer.base import CandidateProposal
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.acceptance import StrictImprovementAcceptance
from gepa.strategies.candidate_selector import ParetoCandidateSelector
from gepa.strategies.proposal_sampling import ProposalTask

from p2o.evolution.adapter import COMPONENT, Candidate
from p2o.evolution.journal import Journal
from p2o.evolution.reflectors import Feedback, Reflection, ReflectionJob, Reflector
from p2o.evolution.validity import TemplateFilter
from p2o.faults import fault_point
from p2o.types import Problem, derive_seed

WARM_START = "warm_start"

Dataset = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many proposals ``limit`` metric calls pay for; None = any number.

    ``proposal`` is the most that one costs: parent and child on a minibatch, and the child on all of dev.
    """

    limit: int | None
    proposal: int

    def proposals(self, wanted: int, *, spent: int) -> int:
        """How many of ``wanted`` proposals can be paid for after ``spent`` metric calls."""
        return wanted if self.limit is None else max(0, min(wanted, (self.limit - spent) // self.proposal))


class ParentSampling:
    """W (parent, minibatch) pairs per iteration: parents from the Pareto front, minibatches in shuffled passes.

    An iteration's draws follow from the seed, its number and gepa's state, not from memory. Within a pass over the
    training questions no two minibatches share one. With ``warm`` templates the first iteration is theirs: one pair
    each, under the empty template, on a single question. If ``allowance`` pays for fewer pairs, there are fewer.
    """

    def __init__(self, *, parents: int, minibatch: int, warm: int, allowance: Allowance, seed: int) -> None:
        self.parents = parents
        self.minibatch = minibatch
        self.warm = warm
        self.allowance = allowance
        self.seed = seed

    def sample_tasks(
        self, state: GEPAState, candidate_selector: object, batch_sampler: object, trainset: DataLoader[str, Problem]
    ) -> list[ProposalTask]:
        ids = list(trainset.all_ids())
        warm = state.i == 0 and self.warm
        width = self.allowance.proposals(warm or self.parents, spent=state.total_num_evals)
        if warm:
            return [self._task(state, 0, ids[:1], trainset) for _ in range(width)]
        tasks = []
        for number in range(width):
            rng = random.Random(derive_seed(self.seed, "parent", state.i, number))
            parent = ParetoCandidateSelector(rng).select_candidate_idx(state)
            tasks.append(self._task(state, parent, self._minibatch(ids, state.i * self.parents + number), trainset))
        return tasks

    def _minibatch(self, ids: list[str], number: int) -> list[str]:
        passes, position = divmod(number, max(1, len(ids) // self.minibatch))
        shuffled = random.Random(derive_seed(self.seed, "pass", passes)).sample(ids, len(ids))
        return shuffled[position * self.minibatch : (position + 1) * self.minibatch]

    @staticmethod
    def _task(state: GEPAState, parent: int, ids: list[str], trainset: DataLoader[str, Problem]) -> ProposalTask:
        return ProposalTask(parent, state.program_candidates[parent], ids, trainset.fetch(ids))


class TemplateReflection:
    """gepa's reflection strategy: one batched call of the reflector per iteration, its replies journaled and judged.

    ``rejected`` counts by kind the replies that gave no template. gepa swallows what a reflection raises, so it is
    kept in ``error`` for the stop condition to raise.
    """

    def __init__(
        self, reflector: Reflector, journal: Journal, judge: TemplateFilter, *, warm: Sequence[str], seed: int
    ) -> None:
        self.reflector = reflector
        self.journal = journal
        self.judge = judge
        self.seed = seed
        self.rejected: Counter[str] = Counter()
        self.warm = [text for text in warm if self._usable(text)]
        """Texts of earlier epochs that may be templates here."""
        self.asked = 0
        """Reflections so far."""
        self.proposed = 0
        """Usable templates so far."""
        self.failures: Counter[str] = Counter()
        """How often each kind of failure of the reflector occurred, retries and earlier launches included."""
        self.error: Exception | None = None
        self._batches = 0

    def reflect(
        self, candidate: Candidate, reflective_dataset: Dataset, components_to_update: list[str]
    ) -> tuple[ReflectionProposal, TemplateReflection]:
        return self.reflect_many([(candidate, reflective_dataset, components_to_update)])[0]

    def reflect_many(
        self, jobs: list[tuple[Candidate, Dataset, list[str]]]
    ) -> list[tuple[ReflectionProposal, TemplateReflection]]:
        """A proposal for each of gepa's jobs, without a text if the reply was unusable."""
        self._batches += 1
        warm = self._batches == 1 and bool(self.warm)
        texts: Sequence[str | None]
        try:
            if warm:
                texts = self.warm[: len(jobs)]
            else:
                texts = self._templates([self._job(*job[:2], i) for i, job in enumerate(jobs)])
        except Exception as error:
            self.error = error
            texts = [None] * len(jobs)
        self.proposed += sum(text is not None for text in texts)
        metadata = {WARM_START: warm}
        return [(ReflectionProposal({COMPONENT: t} if t is not None else {}, metadata=metadata), self) for t in texts]

    def _job(self, candidate: Candidate, dataset: Dataset, position: int) -> ReflectionJob:
        examples = tuple(Feedback(**record) for record in dataset[COMPONENT])
        seed = derive_seed(self.seed, "reflect", self._batches, position)
        return ReflectionJob(candidate[COMPONENT], examples, seed)

    def _templates(self, jobs: Sequence[ReflectionJob]) -> list[str | None]:
        """New templates; None for a parent that solved its whole minibatch, and for an unusable reply."""
        texts: list[str | None] = [None] * len(jobs)
        asked = [i for i, job in enumerate(jobs) if not all(example.solved for example in job.examples)]
        for i, reflection in zip(asked, self._reflect([jobs[i] for i in asked]), strict=True):
            if reflection.error is not None:
                self.rejected[reflection.error] += 1
            elif self._usable(reflection.text or "", jobs[i].template):
                texts[i] = reflection.text
        return texts

    def _usable(self, text: str, parent: str = "") -> bool:
        reason = self.judge.reject(text, parent)
        if reason is not None:
            self.rejected[reason] += 1
        return reason is None

    def _reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        if not jobs:
            return []
        self.asked += len(jobs)
        result = self.journal.call("reflect", [asdict(job) for job in jobs], lambda: self._ask(jobs))
        self.failures.update(result["failures"])
        return [Reflection(**reply) for reply in result["replies"]]

    def _ask(self, jobs: Sequence[ReflectionJob]) -> dict[str, Any]:
        fault_point("a reflection asked for", seeds=[job.seed for job in jobs])
        before = Counter(self.reflector.failures)
        replies = [asdict(reflection) for reflection in self.reflector.reflect(jobs)]
        fault_point("a reflection, not journaled")
        return {"replies": replies, "failures": dict(self.reflector.failures - before)}


class Acceptance(StrictImprovementAcceptance):
    """A child must beat its parent on their minibatch; a warm-start template is let through to be scored on dev."""

    def should_accept(self, proposal: CandidateProposal, state: GEPAState) -> bool:
        return bool(proposal.metadata.get(WARM_START)) or super().should_accept(proposal, state)
