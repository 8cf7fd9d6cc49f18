"""The prompt phase: evolve templates on the hard questions with GEPA, under the current policy."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import gepa
from gepa.core.callbacks import GEPACallback
from gepa.core.result import GEPAResult
from gepa.gepa_utils import find_dominator_programs

from p2o.config.schema import GepaConfig
from p2o.evolution.adapter import COMPONENT, Evaluate, Questions, TemplateAdapter
from p2o.evolution.journal import Journal
from p2o.evolution.monitor import EvolutionProgress, FileLog, Watch
from p2o.evolution.proposals import Acceptance, Allowance, ParentSampling, TemplateReflection
from p2o.evolution.reflectors import Reflector
from p2o.evolution.validity import TemplateFilter
from p2o.rollout.ledger import Ledger
from p2o.types import Problem, Template, derive_seed, template_id

log = logging.getLogger(__name__)

FULL_MINIBATCH = 35
FULL_EVALUATION_EVERY = 5
"""Constants of the published budget."""


@dataclass(frozen=True, slots=True)
class Evolution:
    """What an evolution found and what it cost.

    ``pool`` holds every candidate, the empty template first; ``front`` those of the Pareto front over dev questions
    that solve anything and are not dominated. ``rejected`` counts by kind the proposals that became no template, and as
    ``not_better`` those that did not beat their parent; ``leaked`` of them contained a gold answer. ``failures`` counts
    the reflector's own by kind, retried ones included. ``stop_reason``:
    budget | run_budget (the run's budget does not cover another proposal) | max_iterations | no_proposals |
    dev_solved | stop_file | too_few_questions.
    """

    pool: tuple[Template, ...]
    front: tuple[Template, ...]
    dev_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    metric_calls: int
    budget: int
    reflection_calls: int
    rejected: Mapping[str, int]
    iterations: int
    stop_reason: str
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def why_it_stopped(self) -> str:
        """``stop_reason`` with what became of the proposals, for people."""
        return ", ".join([self.stop_reason, *(f"{count} {kind}" for kind, count in self.rejected.items())])

    @property
    def seed_dev_score(self) -> float:
        """Mean dev score of the empty template."""
        return self.pool[0].dev_score

    @property
    def leaked(self) -> int:
        return self.rejected.get("leak", 0)

    def to_json(self) -> dict[str, Any]:
        """The evolution as JSON, for ``pool.json``."""
        value = {name: getattr(self, name) for name in self.__slots__}
        return value | {
            "pool": [template.to_json() for template in self.pool],
            "front": [template.id for template in self.front],
            "rejected": dict(self.rejected),
            "failures": dict(self.failures),
            "seed_dev_score": self.seed_dev_score,
        }


def metric_call_budget(candidates: int, dev_size: int) -> int:
    """The published budget for c candidates and V dev questions, in metric calls.

    N = ⌊max(4 · log2 c, 1.5 · c)⌋ trials take V + 5c + 35N + (⌊(N + 1) / 5⌋ + 1) · V calls.
    """
    trials = int(max(4 * math.log2(candidates), 1.5 * candidates))
    full_evaluations = (trials + 1) // FULL_EVALUATION_EVERY + 1
    return dev_size + 5 * candidates + FULL_MINIBATCH * trials + full_evaluations * dev_size


def budget_of(config: GepaConfig, dev_size: int) -> int:
    """Metric calls of an evolution: those configured, or the published budget."""
    return metric_call_budget(config.candidates, dev_size) if config.metric_calls is None else config.metric_calls


def split(hard: Sequence[Problem], dev_size: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(train, dev): dev is a random ``dev_size`` of the hard questions, at most half, whatever their order."""
    shuffled = random.Random(derive_seed(seed, "split")).sample(sorted(hard, key=lambda p: p.id), len(hard))
    size = min(dev_size, len(hard) // 2)
    return shuffled[size:], shuffled[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What an evolution starts from, besides its questions and its configuration."""

    epoch: int
    seed: int
    run_dir: Path
    """The evolution's own folder, with its journal."""
    count_tokens: Callable[[str], int]
    ledger: Ledger = field(default_factory=Ledger)
    warm_start: Sequence[str] = ()
    """Texts that, if they pass the template checks, are scored on dev first and join the pool."""
    progress: Callable[[EvolutionProgress], None] | None = None
    limit: int | None = None
    """Metric calls that are left in the run's budget; never exceeded, so iterations get narrower near it."""


def evolve(
    hard: Sequence[Problem], evaluate: Evaluate, reflector: Reflector, config: GepaConfig, setting: Setting
) -> Evolution:
    """Evolve templates on the hard questions under the current policy.

    ``evaluate`` gets all requests of a step at once, and sets their temperature itself (``config.temperature``).
    What it and the reflector add to the ledger is recorded with their results in ``run_dir/journal.jsonl``. Called
    again with the same arguments after a kill, an evolution repeats none of those calls, adds their cost to the ledger
    again, and ends with the same result. gepa's own pickled state is never read.

    Errors of ``evaluate`` and of the journal propagate; a reflector's failures are counted in ``Evolution.rejected``.
    An iteration begun within the budget is finished, even beyond it.
    """
    train, dev = split(hard, config.dev_size, derive_seed(setting.seed, setting.epoch))
    if not dev:
        return _none(hard, "too_few_questions")
    allowance = Allowance(setting.limit, proposal=2 * config.minibatch + len(dev))
    if not allowance.proposals(1, spent=len(dev)):
        return _none(hard, "run_budget")
    budget = budget_of(config, len(dev))
    budget = budget if setting.limit is None else min(setting.limit, budget)
    seed = derive_seed(setting.seed, setting.epoch, "evolve")
    _drop_unwanted(setting.run_dir)
    journal = Journal(setting.run_dir / "journal.jsonl", setting.ledger)
    journal.call("evolve", _identity(train, dev, config, seed, setting), lambda: None)
    template_filter = TemplateFilter(
        [problem.answer for problem in hard],
        max_tokens=config.max_template_tokens,
        count_tokens=setting.count_tokens,
        leak_filter=config.leak_filter,
    )
    reflection = TemplateReflection(reflector, journal, template_filter, warm=setting.warm_start, seed=seed)
    watch = Watch(config, budget, allowance, reflection, setting.progress)
    valset = Questions("dev", dev)
    dev_ids = [problem.id for problem in dev]
    sampling = ParentSampling(
        parents=config.parents, minibatch=config.minibatch, warm=len(reflection.warm), allowance=allowance, seed=seed
    )
    _announce(config, budget, train, dev)
    result = gepa.optimize(
        seed_candidate={COMPONENT: ""},
        trainset=Questions("train", train),
        valset=valset,
        adapter=TemplateAdapter(evaluate, journal, samples=config.dev_samples, seed=seed, dev_ids=dev_ids),
        sampling_strategy=sampling,
        reflection_strategy=reflection,
        acceptance_criterion=Acceptance(),
        skip_perfect_score=False,
        stop_callbacks=watch,
        callbacks=[cast(GEPACallback, watch)],
        track_best_outputs=False,
        run_dir=str(setting.run_dir),
        logger=FileLog(setting.run_dir / "gepa.log"),
        seed=seed,
    )
    _drop_unwanted(setting.run_dir)
    return _evolution(result, train, dev, _pool(result, valset, config, setting.epoch, reflection.warm), watch)


def _evolution(
    result: GEPAResult, train: Sequence[Problem], dev: Sequence[Problem], pool: tuple[Template, ...], watch: Watch
) -> Evolution:
    reflection = watch.reflection
    return Evolution(
        pool=pool,
        front=_front(result, pool),
        dev_ids=tuple(problem.id for problem in dev),
        train_ids=tuple(problem.id for problem in train),
        metric_calls=result.total_metric_calls or 0,
        budget=watch.max_metric_calls,
        reflection_calls=reflection.asked,
        rejected=dict(sorted((reflection.rejected + Counter(not_better=watch.not_better)).items())),
        iterations=watch.iterations,
        stop_reason=watch.reason or "stop_file",
        failures=dict(sorted(reflection.failures.items())),
    )


def _announce(config: GepaConfig, budget: int, train: Sequence[Problem], dev: Sequence[Problem]) -> None:
    """The fewest proposals if all are accepted, and so scored on all of dev; the most if none is."""
    left = max(0, budget - len(dev))
    log.info(
        "evolution: %d train and %d dev questions, %d metric calls, room for %d to %d proposals",
        len(train),
        len(dev),
        budget,
        left // (2 * config.minibatch + len(dev)),
        left // config.minibatch,
    )


def _front(result: GEPAResult, pool: Sequence[Template]) -> tuple[Template, ...]:
    best = find_dominator_programs(result.per_val_instance_best_candidates, result.val_aggregate_scores)
    return tuple(pool[i] for i in sorted(best) if pool[i].text and pool[i].covers)


def _pool(
    result: GEPAResult, valset: Questions, config: GepaConfig, epoch: int, warm: Sequence[str]
) -> tuple[Template, ...]:
    """gepa's candidates as templates. A template carried over from an earlier epoch has no parent in this pool."""
    texts = [candidate[COMPONENT] for candidate in result.candidates]
    pool = []
    for i, (text, parents) in enumerate(zip(texts, result.parents, strict=True)):
        scores = result.val_subscores[i]
        solved = [dev_id for dev_id, score in scores.items() if score >= config.solve_threshold]
        pool.append(
            Template(
                text=text,
                parents=() if text in warm else tuple(template_id(texts[p]) for p in parents if p is not None),
                epoch=epoch,
                dev_score=sum(scores.values()) / len(scores),
                covers=frozenset(problem.id for problem in valset.fetch(solved)),
            )
        )
    return tuple(pool)


def _none(hard: Sequence[Problem], why: str) -> Evolution:
    """An evolution that did not take place: one question, say, cannot serve for both learning and testing."""
    return Evolution(
        pool=(Template(""),),
        front=(),
        dev_ids=(),
        train_ids=tuple(problem.id for problem in hard),
        metric_calls=0,
        budget=0,
        reflection_calls=0,
        rejected={},
        iterations=0,
        stop_reason=why,
    )


def _identity(
    train: Sequence[Problem], dev: Sequence[Problem], config: GepaConfig, seed: int, setting: Setting
) -> dict[str, Any]:
    """Everything that decides an evolution's course, besides the policy."""
    return {
        "train": [[problem.id, problem.question, problem.answer] for problem in train],
        "dev": [[problem.id, problem.question, problem.answer] for problem in dev],
        "config": asdict(config),
        "seed": seed,
        "warm_start": list(setting.warm_start),
        "gepa": importlib.metadata.version("gepa"),
    } | ({} if setting.limit is None else {"limit": setting.limit})


def _drop_unwanted(run_dir: Path) -> None:
    """Remove gepa's own saved state, which it would load if it found it (a resume goes by the journal), and its page,
    which loads a script from elsewhere (the report draws the same tree).
    """
    for pattern in ("gepa_state.bin*", "candidate_tree.html"):
        for path in run_dir.glob(pattern):
            path.unlink()
