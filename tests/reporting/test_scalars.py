from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from p2o.algorithm.advantages import GroupAdvantages
from p2o.reporting.epoch_summary import EpochSummary
from p2o.reporting.scalars import LAYOUT, epoch_scalars, ledger_scalars, round_scalars
from p2o.rollout.ledger import Ledger
from p2o.types import Phase


def test_a_round_in_numbers(make_scored: Callable[..., GroupAdvantages]) -> None:
    groups = [
        make_scored("a", "cwut", ("plain", "z", "z", "z")),
        make_scored("b", "cccc"),
        make_scored("c", "wwut", ("plain", "plain", "z", "z"), length=1),
    ]
    scalars = round_scalars(groups)
    assert scalars["reward"] == pytest.approx(5 / 12)
    shares = [scalars[outcome] for outcome in ("correct", "wrong", "unparseable", "timeout")]
    assert shares == pytest.approx([5 / 12, 3 / 12, 2 / 12, 2 / 12])
    assert scalars["success_plain"] == pytest.approx(5 / 7)
    assert scalars["success_templated"] == 0
    assert scalars["length"] == pytest.approx((18 + 18 + 10) / 12)
    assert scalars["truncated"] == pytest.approx(2 / 12)
    assert (scalars["live"], scalars["all_fail"], scalars["all_pass"]) == (1, 1, 1)
    assert scalars["groups_templated"] == 2


def test_without_templated_rollouts_there_is_no_templated_success(make_scored: Callable[..., GroupAdvantages]) -> None:
    assert "success_templated" not in round_scalars([make_scored("a", "cw")])


def test_what_an_epoch_did_not_measure_is_left_out() -> None:
    scalars = epoch_scalars(EpochSummary(epoch=2, step=9, train_reward=0.5, hard=4, note="too few"))
    assert scalars["train_reward"] == 0.5
    assert scalars["hard"] == 4
    assert not {"epoch", "step", "note", "val_accuracy", "evolved_pass_at_1"} & scalars.keys()


def test_the_ledger_is_split_by_phase() -> None:
    ledger = Ledger()
    ledger.add(Phase.POLICY, generated_tokens=10, trained_tokens=7)
    ledger.add(Phase.EVOLUTION, generated_tokens=5, metric_calls=2)
    scalars = ledger_scalars(ledger)
    assert scalars["generated_tokens/policy"] == 10
    assert scalars["generated_tokens/evolution"] == 5
    assert (scalars["generated_tokens_all"], scalars["trained_tokens_all"], scalars["metric_calls_all"]) == (15, 7, 2)


def test_every_pattern_of_the_layout_is_a_regular_expression() -> None:
    for charts in LAYOUT.values():
        for kind, patterns in charts.values():
            assert kind == "Multiline"
            for pattern in patterns:
                re.compile(pattern)
