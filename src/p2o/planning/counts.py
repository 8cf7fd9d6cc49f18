"""How much work a configuration is: rounds, rollouts, template evaluations, reflection calls and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from p2o.config.schema import Config, StrategiesReflector
from p2o.evolution.gepa_phase import budget_of
from p2o.tasks.rounds import num_rounds


@dataclass(frozen=True)
class Questions:
    """The questions of a run. ``longest_prompt`` is that of the longest plain prompt, in tokens.

    ``exact`` is False where the numbers are the configured ones, since the data was not read.
    """

    train: int
    val: int
    longest_prompt: int
    exact: bool


@dataclass(frozen=True)
class Work:
    """The work of one phase. All are upper bounds but where :class:`Counts` says otherwise."""

    rollouts: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class Counts:
    """The work of a whole run.

    Exact where no budget ends the run early: ``rounds``, ``updates``, ``validations`` and the rollouts of policy phase
    and validation. The rest are upper bounds; ``metric_calls`` counts template evaluations.
    """

    rounds: int
    updates: int
    validations: int
    prompt_phases: int
    """Epochs at whose end templates may be evolved: all but the last."""
    budget: int
    """Metric calls that one prompt phase may begin an iteration with, where the hard set is as large as it can be."""
    metric_calls: int
    reflection_calls: int
    policy: Work
    evolution: Work
    reflection: Work
    validation: Work

    @property
    def total(self) -> Work:
        """The sum over the phases."""
        phases = (self.policy, self.evolution, self.reflection, self.validation)
        return Work(*(sum(getattr(phase, name) for phase in phases) for name in Work.__dataclass_fields__))


def count(config: Config, questions: Questions) -> Counts:
    """The work of ``config`` on ``questions``."""
    evolves = config.gepa.variant != "off"
    per_epoch = num_rounds(questions.train, config)
    rounds = per_epoch * config.trainer.epochs
    answered = min(questions.train, per_epoch * config.policy.questions_per_round)
    phases = config.trainer.epochs - 1 if evolves and answered >= max(2, config.hard_set.min_size) else 0
    budget, metric_calls, reflections = _prompt_phase(config, answered)
    plain = questions.longest_prompt
    templated = min(config.rollout.max_prompt_tokens, plain + config.gepa.max_template_tokens)
    rollouts = answered * config.policy.rollouts * config.trainer.epochs
    validations = _validations(config, rounds)
    return Counts(
        rounds=rounds,
        updates=rounds * config.policy.updates_per_round,
        validations=validations,
        prompt_phases=phases,
        budget=budget if phases else 0,
        metric_calls=phases * metric_calls,
        reflection_calls=phases * reflections,
        policy=_work(config, rollouts, templated if phases else plain, trained=True),
        evolution=_work(config, phases * metric_calls * config.gepa.dev_samples, templated),
        reflection=_reflection(config, phases * reflections),
        validation=_work(config, validations * questions.val * config.validation.samples, plain),
    )


def _work(config: Config, rollouts: int, prompt: int, *, trained: bool = False) -> Work:
    generated = rollouts * config.rollout.max_new_tokens
    return Work(rollouts, rollouts * prompt, generated, generated if trained else 0)


def _reflection(config: Config, calls: int) -> Work:
    """The built-in teacher of ``reflector=strategies`` looks its templates up: it costs no tokens."""
    reflector = config.reflector
    if config.gepa.variant == "teacher_ref" and isinstance(reflector, StrategiesReflector):
        return Work()
    return Work(0, calls * reflector.max_prompt_tokens, calls * reflector.max_new_tokens)


def _validations(config: Config, rounds: int) -> int:
    """One before training, then at every epoch's end, or every so many rounds and at the end."""
    every = config.validation.every_rounds
    if every is None:
        return 1 + config.trainer.epochs
    return 1 + rounds // every + (rounds % every > 0)


def _prompt_phase(config: Config, answered: int) -> tuple[int, int, int]:
    """(budget, metric calls, reflection calls) of one prompt phase on ``answered`` hard questions.

    An iteration is begun while the budget lasts and always finished, so the calls may exceed it by one iteration: W
    parents and W children on B questions each, and all W children on all of dev. Proposals that are carried over from
    the epoch before (``gepa.warm_start``) make a first iteration that is as wide as the front was, at most dev.
    """
    gepa = config.gepa
    dev = min(gepa.dev_size, answered // 2)
    if not dev:
        return 0, 0, 0
    budget = budget_of(gepa, dev)
    width = max(gepa.parents, dev) if gepa.warm_start else gepa.parents
    iteration = width * (2 * gepa.minibatch + dev)
    calls = min(max(budget - 1, dev) + iteration, dev + gepa.max_iterations * iteration)
    return budget, calls, gepa.max_iterations * gepa.parents
