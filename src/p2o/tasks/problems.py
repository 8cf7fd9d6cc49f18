"""From ``data`` and ``reward`` to the problems of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from p2o.config.schema import CustomData, DataConfig, HubData, JsonlData, ReasoningGymData, RewardConfig
from p2o.extensions import load_object
from p2o.rewards import GraderPool
from p2o.tasks import gym, jsonl
from p2o.tasks.problem_set import DataError, DataReport, ProblemSet, Row, Sieve, Unusable
from p2o.types import Problem


def load_problems(data: DataConfig, reward: RewardConfig) -> ProblemSet:
    """Training and held-out problems whose gold answers the reward can judge.

    Rows that cannot be used are reported and left out, or refused if ``data.strict``.

    Raises:
        DataError: for a source that is missing or malformed, and if nothing usable is left.
        RewardError, ExtensionError: for a reward that cannot work.
    """
    report = DataReport(source=data.factory if isinstance(data, CustomData) else data.kind)
    match data:
        case ReasoningGymData():
            train, val = gym.load(data, report)
        case HubData():
            from p2o.tasks import hub_data  # imports the datasets library, which takes a while

            train, val = hub_data.load(data, report)
        case JsonlData():
            train, val = jsonl.load(data, report)
        case CustomData():
            train, val = _custom(data, report)
        case other:
            raise TypeError(f"no source of questions for {type(other).__name__}")
    if reward.kind == "reasoning_gym" and not isinstance(data, ReasoningGymData):
        raise DataError(f"reward=reasoning_gym cannot score data={data.kind}: use reward=math, exact or function")
    with GraderPool(reward) as grader:
        train, val = (gradable(problems, grader, report) for problems in (train, val))
    if data.strict and report.faults:
        raise DataError(f"data.strict=true and there are unusable rows\n{report.render()}")
    for name, problems in (("training", train), ("held-out", val)):
        if not problems:
            raise DataError(f"no usable {name} question is left\n{report.render()}")
    return ProblemSet(tuple(train), tuple(val), report)


def _custom(data: CustomData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """The (training, held-out) problems of ``data.factory``; a question in both parts is held out."""
    match load_object(data.factory, "data.factory")(data):
        case (Iterable() as train, Iterable() as val):
            sieve = Sieve(report)
            held_out = list(sieve(_rows(val, data.factory)))
            return list(sieve(_rows(train, data.factory))), held_out
        case other:
            raise _not_problems(data.factory, other)


def _rows(made: Iterable[object], factory: str) -> Iterator[Row]:
    for row in made:
        if not isinstance(row, Row):
            raise _not_problems(factory, row)
        yield row


def _not_problems(factory: str, made: object) -> DataError:
    return DataError(
        f"data.factory={factory} returned {type(made).__name__} {made!r:.80}: return two lists of p2o.types.Problem, "
        "the training and the held-out questions"
    )


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
