"""From ``data`` and ``reward`` to the problems of a run."""

from __future__ import annotations

from collections.abc import Sequence

from p2o.config.schema import DataConfig, HubData, JsonlData, LatentSkillData, ReasoningGymData, RewardConfig
from p2o.rewards import GraderPool
from p2o.tasks import gym, jsonl, latent_skill
from p2o.tasks.problem_set import DataError, DataReport, ProblemSet, Unusable
from p2o.types import Problem


def load_problems(data: DataConfig, reward: RewardConfig) -> ProblemSet:
    """Training and held-out problems whose gold answers the reward can judge.

    Rows that cannot be used are reported and left out, or refused where ``data.strict``.

    Raises:
        DataError: for a source that is missing or of the wrong form, and where nothing usable is left.
        RewardError, ExtensionError: for a reward that cannot work.
    """
    report = DataReport(source=data.kind)
    match data:
        case ReasoningGymData():
            train, val = gym.load(data, report)
        case HubData():
            from p2o.tasks import hub_data  # brings in the datasets library, which takes its time

            train, val = hub_data.load(data, report)
        case JsonlData():
            train, val = jsonl.load(data, report)
        case LatentSkillData():
            train, val = latent_skill.load(data, report)
        case other:
            raise TypeError(f"no source of questions for {type(other).__name__}")
    if reward.kind == "reasoning_gym" and not isinstance(data, ReasoningGymData):
        raise DataError(f"reward=reasoning_gym scores reasoning-gym's own questions, not data={data.kind}: reward=math")
    with GraderPool(reward) as grader:
        train, val = (gradable(problems, grader, report) for problems in (train, val))
    if data.strict and report.faults:
        raise DataError(f"data.strict=true and there are unusable rows\n{report.render()}")
    for name, problems in (("training", train), ("held-out", val)):
        if not problems:
            raise DataError(f"no usable {name} question is left\n{report.render()}")
    return ProblemSet(tuple(train), tuple(val), report)


def gradable(problems: Sequence[Problem], grader: GraderPool, report: DataReport) -> list[Problem]:
    """The problems whose gold answer the grader can read; the others are reported."""
    kept = []
    for problem, usable in zip(problems, grader.check_golds(problems), strict=True):
        if usable:
            kept.append(problem)
        else:
            shown = f"{problem.answer!r} to: {problem.question}"
            report.add(Unusable("gold answer that the grader cannot read", problem.id, shown))
    return kept
