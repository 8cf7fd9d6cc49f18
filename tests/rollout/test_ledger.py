"""One ledger: phases apart, totals together, JSON there and back."""

from __future__ import annotations

import json

import pytest

from p2o.rollout.ledger import Ledger
from p2o.types import Phase


def filled() -> Ledger:
    ledger = Ledger()
    ledger.add(Phase.POLICY, generated_tokens=10, rollouts=2, seconds=0.5)
    ledger.add(Phase.POLICY, generated_tokens=5, trained_tokens=7)
    ledger.add(Phase.EVOLUTION, generated_tokens=3, metric_calls=4, seconds=0.25)
    return ledger


def test_counts_add_up_by_phase_and_in_total() -> None:
    ledger = filled()
    assert ledger.by_phase[Phase.POLICY].generated_tokens == 15
    assert ledger.by_phase[Phase.REFLECTION].generated_tokens == 0
    total = ledger.totals()
    assert (total.generated_tokens, total.rollouts, total.metric_calls, total.seconds) == (18, 2, 4, 0.75)


def test_json_there_and_back() -> None:
    ledger = filled()
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again.to_json() == ledger.to_json()
    again.add(Phase.POLICY, generated_tokens=1)
    assert again.by_phase[Phase.POLICY].generated_tokens == 16


def test_a_ledger_of_before_a_count_existed_is_read() -> None:
    counts = {name: value for name, value in filled().to_json()["policy"].items() if name != "scored_tokens"}
    again = Ledger.from_json({"policy": counts})
    assert (again.totals().generated_tokens, again.totals().scored_tokens) == (15, 0)


def test_what_is_no_count_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="tokens"):
        Ledger().add(Phase.POLICY, tokens=1)
    with pytest.raises(ValueError, match=r"ledger\.policy: unknown counts \['tokens'\]"):
        Ledger.from_json({"policy": {"tokens": 1}})
