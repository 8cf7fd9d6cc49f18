"""The order of questions, and the end of a budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from p2o.algorithm.state import RunState
from p2o.config import Config
from p2o.config.schema import BudgetConfig
from p2o.rollout.budget import exhausted, metric_calls_left
from p2o.rollout.ledger import Ledger
from p2o.tasks.rounds import RoundDataModule, num_rounds, rounds_of_epoch
from p2o.types import Phase, Problem

PROBLEMS = [Problem(f"q{i}", f"What is {i}?", str(i)) for i in range(19)]


def ids(rounds: list[tuple[Problem, ...]]) -> list[list[str]]:
    return [[problem.id for problem in problems] for problems in rounds]


def test_an_epoch_meets_every_question_once_in_an_order_of_its_own(configure: Callable[..., Config]) -> None:
    config = configure()
    first, second = (rounds_of_epoch(PROBLEMS, config, epoch) for epoch in (0, 1))
    assert [len(problems) for problems in first] == [8, 8, 3]
    assert len(first) == num_rounds(len(PROBLEMS), config)
    assert sorted(itertools.chain(*ids(first))) == sorted(problem.id for problem in PROBLEMS)
    assert ids(first) != ids(second)
    assert ids(first) == ids(rounds_of_epoch(PROBLEMS, config, 0))
    assert ids(first) != ids(rounds_of_epoch(PROBLEMS, configure("seed=1"), 0))


def test_the_rounds_begin_where_the_state_is(configure: Callable[..., Config]) -> None:
    config, state = configure("trainer.rounds_per_epoch=2"), RunState(round=1)
    loader = RoundDataModule(PROBLEMS, config, state).train_dataloader()
    assert len(loader) == 1
    assert ids(list(loader)) == ids(rounds_of_epoch(PROBLEMS, config, 0))[1:2]


def test_a_budget_ends_when_any_of_its_limits_is_reached() -> None:
    ledger = Ledger()
    ledger.add(Phase.POLICY, generated_tokens=100, trained_tokens=60, seconds=5.0)
    ledger.add(Phase.EVOLUTION, generated_tokens=40, metric_calls=9)
    ledger.add(Phase.VALIDATION, generated_tokens=10_000, seconds=100.0)
    assert exhausted(BudgetConfig(), ledger) is None
    assert exhausted(BudgetConfig(tokens=201, seconds=5.1, metric_calls=10), ledger) is None
    assert exhausted(BudgetConfig(tokens=200), ledger) == "budget.tokens=200 is spent (200)"
    assert exhausted(BudgetConfig(seconds=5), ledger) == "budget.seconds=5 is spent (5)"
    assert exhausted(BudgetConfig(metric_calls=8), ledger) == "budget.metric_calls=8 is spent (9)"
    assert [metric_calls_left(BudgetConfig(metric_calls=n), ledger) for n in (None, 8, 9, 12)] == [None, 0, 0, 3]
