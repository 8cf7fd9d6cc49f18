"""The table of a sweep."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from p2o.reporting.results import write_results
from p2o.rollout.ledger import Ledger
from p2o.types import Phase


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_told_apart_by_what_was_swept_and_validation_costs_nothing(
    play_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(ledger: Ledger) -> dict[str, dict[str, float]]:
        ledger.add(Phase.VALIDATION, generated_tokens=5000)
        return to_json(ledger)

    to_json = Ledger.to_json
    monkeypatch.setattr(Ledger, "to_json", spent)
    done = play_run("done", "+experiment=grpo", "policy.rollouts=4")
    table = tmp_path / "results.csv"
    common = ("+experiment=grpo", "trainer.epochs=2")
    write_results(
        [(done, (*common, "seed=0", "+policy.rollouts=4")), (tmp_path / "no", (*common, "seed=1", "tuning=full"))],
        table,
    )
    first, second = read(table)
    assert list(first)[:4] == ["variant", "seed", "policy.rollouts", "tuning"]
    assert (first["policy.rollouts"], first["tuning"], second["policy.rollouts"], second["tuning"]) == (
        "4",
        "",
        "",
        "full",
    )
    assert "trainer.epochs" not in first, "all rows have it"
    assert (first["variant"], first["status"], second["status"]) == ("grpo", "completed", "absent")
    assert first["generated_tokens"] == "400", "four rounds of 100; validation's are left out"
