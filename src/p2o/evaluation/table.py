"""``results.json`` for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

Json = Mapping[str, Any]

LOST = ("unparseable", "timeout", "too_long")
"""Outcomes of answers in which there was nothing to judge."""


def tables(results: Json) -> Iterator[Table]:
    """The sets with their figures, and the comparison if there is one."""
    yield _figures(results)
    if results["comparison"] is not None:
        yield _comparison(results["comparison"], results["confidence"])


def _figures(results: Json) -> Table:
    sets = results["sets"]
    ks = sorted({int(k) for one in sets.values() for k in one["pass_at"] if k != "1"})
    prompt = "plain prompt" if results["template_id"] == "plain" else f"template {results['template_id']}"
    heads = ["answers", "accuracy", f"{results['confidence']:.0%} interval", *(f"@{k}" for k in ks)]
    table = _table(f"{results['model']}, {prompt}", *heads, "lost", "cut off", "tokens")
    for name, one in sets.items():
        answers = one["questions"] * one["samples"]
        table.add_row(
            name,
            f"{one['questions']} × {one['samples']}" if one["samples"] > 1 else str(one["questions"]),
            _percent(one["accuracy"]),
            _interval(one["interval"]),
            *(_percent(one["pass_at"][str(k)]["mean"]) if str(k) in one["pass_at"] else "–" for k in ks),
            _percent(sum(one["outcomes"][outcome] for outcome in LOST) / answers),
            _percent(one["cut_off"] / answers),
            f"{one['mean_tokens']:.0f}",
        )
    if len(sets) > 1:
        mean = results["average"]
        table.add_section()
        table.add_row("mean of the sets", "", _percent(mean["accuracy"]), _interval(mean["interval"]))
    table.caption = "@k: Pass@k; lost: no answer to judge; cut off: rollout.max_new_tokens reached; tokens: mean"
    return table


def _comparison(comparison: Json, confidence: float) -> Table:
    heads = ["questions", "here", "there", "difference", f"{confidence:.0%} interval", "better : worse", "p"]
    table = _table(f"compared with {comparison['model']} in {comparison['with']}", *heads)
    for name, one in comparison["sets"].items():
        table.add_row(
            name,
            str(one["questions"]),
            _percent(one["accuracy"]),
            _percent(one["other_accuracy"]),
            f"{one['mean']:+.1%}",
            _interval(one["interval"], "+"),
            f"{one['better']} : {one['worse']}",
            f"{one['p_value']:.3g}",
        )
    if len(comparison["sets"]) > 1:
        mean = comparison["average"]
        table.add_section()
        table.add_row("mean of the sets", "", "", "", f"{mean['mean']:+.1%}", _interval(mean["interval"], "+"))
    tests = ", ".join(sorted({one["test"] for one in comparison["sets"].values()}))
    table.caption = f"better : worse counts questions; p: {tests} test"
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("set", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _interval(interval: Json | None, sign: str = "") -> str:
    return "–" if interval is None else f"{interval['low']:{sign}.1%} … {interval['high']:{sign}.1%}"
