"""How much work a configuration is: rounds, rollouts, template evaluations, reflection calls and tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2o.config.schema import Config, StrategiesReflector
from p2o.evolution.gepa_phase import budget_of
from p2o.tasks.rounds import num_rounds
from p2o.types import Phase


@dataclass(frozen=True)
class Questions:
    """The questions of a run; ``longest_prompt`` is the longest plain prompt, in tokens.

    If ``exact`` is False the data was not read and the numbers are the configured ones.
    """

    train: int
    val: int
    longest_prompt: int
    exact: bool


@dataclass(frozen=True)
class Work:
    """The work of one phase. The tokens are upper bounds."""

    rollouts: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class Counts:
    """The work of a whole run.

    ``rounds``, ``updates``, ``validations`` and the rollouts of the policy phase and of validation are exact unless a
    budget ends the run early. The rest are upper bounds.
    """

    rounds: int
    updates: int
    validations: int
    prompt_phases: int
    """Epochs that may end with an evolution of templates: all but the last."""
    budget: int
    """Template evaluations that one prompt phase may start an iteration with, if the hard set is as large as it can
    be."""
    metric_calls: int
    """Template evaluations of the whole run."""
    reflection_calls: int
    work: dict[Phase, Work]

    @property
    def total(self) -> Work:
        """The sum over the phases."""
        return Work(*(sum(getattr(one, name) for one in self.work.values()) for name in Work.__dataclass_fields__))


def count(config: Config, questions: Questions) -> Counts:
    """The work of ``config`` on ``questions``."""
    gepa, rollout, reflector = config.gepa, config.rollout, config.reflector
    per_epoch = num_rounds(questions.train, config)
    rounds = per_epoch * config.trainer.epochs
    answered = min(questions.train, per_epoch * config.policy.questions_per_round)
    evolves = gepa.variant != "off" and answered >= max(2, config.hard_set.min_size)
    phases = config.trainer.epochs - 1 if evolves else 0
    budget, metric_calls = _prompt_phase(config, answered) if phases else (0, 0)
    reflections = phases * gepa.max_iterations * gepa.parents
    looked_up = gepa.variant == "teacher_ref" and isinstance(reflector, StrategiesReflector)  # costs no tokens
    asked = 0 if looked_up else reflections
    every = config.validation.every_rounds
    validations = 1 + (config.trainer.epochs if every is None else rounds // every + (rounds % every > 0))
    plain = questions.longest_prompt
    templated = min(rollout.max_prompt_tokens, plain + gepa.max_template_tokens)

    def work(rollouts: int, prompt: int) -> Work:
        return Work(rollouts, rollouts * prompt, rollouts * rollout.max_new_tokens)

    policy = work(answered * config.policy.rollouts * config.trainer.epochs, templated if phases else plain)
    return Counts(
        rounds=rounds,
        updates=rounds * config.policy.updates_per_round,
        validations=validations,
        prompt_phases=phases,
        budget=budget,
        metric_calls=phases * metric_calls,
        reflection_calls=reflections,
        work={
            Phase.POLICY: replace(policy, trained_tokens=policy.generated_tokens),
            Phase.EVOLUTION: work(phases * metric_calls * gepa.dev_samples, templated),
            Phase.REFLECTION: Work(0, asked * reflector.max_prompt_tokens, asked * reflector.max_new_tokens),
            Phase.VALIDATION: work(validations * questions.val * config.validation.samples, plain),
        },
    )


def _prompt_phase(config: Config, answered: int) -> tuple[int, int]:
    """(budget, template evaluations) of one prompt phase if all ``answered`` questions are hard.

    An iteration starts while the budget lasts and always finishes, so the evaluations may exceed the budget by one
    iteration: W parents and W children on B questions each, and all W children on all of dev. Proposals carried over
    from the epoch before (``gepa.warm_start``) make a first iteration as wide as the front was, at most dev.
    """
    gepa = config.gepa
    dev = min(gepa.dev_size, answered // 2)
    budget = budget_of(gepa, dev)
    width = max(gepa.parents, dev) if gepa.warm_start else gepa.parents
    iteration = width * (2 * gepa.minibatch + dev)
    return budget, min(max(budget - 1, dev) + iteration, dev + gepa.max_iterations * iteration)
