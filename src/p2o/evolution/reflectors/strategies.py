"""A built-in teacher without a network: it diagnoses failures and composes instructions from a library of strategies.

It knows only what the library says, and puts nothing of a question or an answer into a template.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from p2o.evolution.reflectors.base import Feedback, Reflection, ReflectionJob, ReflectorError
from p2o.evolution.reflectors.diagnosis import KINDS, diagnose
from p2o.rollout.ledger import Ledger
from p2o.types import Phase

ROLES = ("method", "work", "check", "format")
"""The order of an instruction's parts: at most one strategy per role, two for ``method``."""

METHODS = 2
CUE_FACTOR = 3.0
"""How much likelier a strategy for this sort of question is than a general one."""

INHERITED = "inherited"
"""Stands for the part of a parent's text that is not from the library."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A piece of an instruction and when it helps; the fields are documented in ``strategies.yaml``."""

    id: str
    text: str
    role: str
    failures: frozenset[str] = frozenset()
    cues: frozenset[str] = frozenset()
    weight: float = 1.0


@dataclass(frozen=True)
class Library:
    """Strategies, and the cues (name → pattern) by which they recognise a sort of question."""

    strategies: tuple[Strategy, ...]
    cues: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | None = None) -> Library:
        """Read a library from a YAML file (None = the built-in one).

        Raises :class:`ReflectorError` naming the file and the entry.
        """
        builtin = resources.files("p2o.evolution.reflectors") / "strategies.yaml"
        file = builtin if path is None else Path(path).expanduser()
        try:
            return _parse(yaml.safe_load(file.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ReflectorError) as error:
            raise ReflectorError(f"reflector.strategies={file}: {error}") from None

    def odds(self, examples: Sequence[Feedback]) -> dict[Strategy, float]:
        """The strategies that address any of the failed examples, each with the sum of its weights."""
        failed = [(example.question, kinds) for example in examples if (kinds := diagnose(example))]
        odds = {
            strategy: sum(self._relevance(strategy, question, kinds) for question, kinds in failed)
            for strategy in self.strategies
        }
        return {strategy: weight for strategy, weight in odds.items() if weight > 0}

    def _relevance(self, strategy: Strategy, question: str, kinds: Sequence[str]) -> float:
        if strategy.failures and strategy.failures.isdisjoint(kinds):
            return 0.0
        if not strategy.cues:
            return strategy.weight
        found = any(self.cues[cue].search(question) for cue in strategy.cues)
        return strategy.weight * CUE_FACTOR if found else 0.0


class StrategiesReflector:
    """Composes a first instruction for an empty template; adds, replaces or drops a strategy in any other."""

    def __init__(self, library: Library, ledger: Ledger) -> None:
        self.known = library
        self.ledger = ledger
        self.failures: Counter[str] = Counter()

    def check(self) -> None:
        """Nothing can be missing: the library was read when it was loaded."""

    def reflect(self, jobs: Sequence[ReflectionJob]) -> list[Reflection]:
        """One instruction per job, drawn with the job's own seed; ``no_strategy`` if none applies."""
        self.ledger.add(Phase.REFLECTION, reflection_calls=len(jobs))
        reflections = [self._reflect(job) for job in jobs]
        self.failures.update(reflection.error for reflection in reflections if reflection.error)
        return reflections

    def _reflect(self, job: ReflectionJob) -> Reflection:
        rng = random.Random(job.seed)
        odds = self.known.odds(job.examples)
        parts = self._parts(job.template)
        for _ in range(8):
            child = _compose(odds, rng) if not parts else _mutate(parts, odds, rng)
            text = "\n".join(part.text for part in sorted(child, key=_order))
            if text and text != job.template:
                return Reflection(text, raw=_explain(job, child))
        return Reflection(None, raw=_explain(job, []), error="no_strategy")

    def _parts(self, template: str) -> list[Strategy]:
        """The strategies that a template is made of; what is left over stays together as one ``inherited`` part."""
        rest = template
        parts = []
        for strategy in sorted(self.known.strategies, key=lambda s: -len(s.text)):
            if strategy.text in rest:
                rest = rest.replace(strategy.text, "", 1)
                parts.append(strategy)
        if remainder := "\n".join(line for line in rest.splitlines() if line.strip()):
            parts.append(Strategy(INHERITED, remainder, "method"))
        return parts


def _compose(odds: Mapping[Strategy, float], rng: random.Random) -> list[Strategy]:
    """A new instruction of one to three parts, often with a method for the sort of question."""
    parts: list[Strategy] = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        parts = _add(parts, odds, rng)
    return parts


def _mutate(parts: list[Strategy], odds: Mapping[Strategy, float], rng: random.Random) -> list[Strategy]:
    kind = rng.choices(("add", "replace", "drop"), (5, 3, 2))[0]
    if kind == "add":
        return _add(parts, odds, rng)
    dropped = rng.choice(parts)
    kept = [part for part in parts if part is not dropped]
    if kind == "drop" and kept:
        return kept
    same_role = {s: weight for s, weight in odds.items() if s.role == dropped.role and s != dropped}
    return _add(kept, same_role, rng)


def _add(parts: list[Strategy], odds: Mapping[Strategy, float], rng: random.Random) -> list[Strategy]:
    """``parts`` with one more strategy; it replaces an earlier one if its role is full."""
    fresh = {strategy: weight for strategy, weight in odds.items() if strategy not in parts}
    if not fresh:
        return parts
    chosen = rng.choices(list(fresh), list(fresh.values()))[0]
    rivals = [part for part in parts if part.role == chosen.role]
    room = METHODS if chosen.role == "method" else 1
    displaced = rng.choice(rivals) if len(rivals) >= room else None
    return [*(part for part in parts if part is not displaced), chosen]


def _order(part: Strategy) -> tuple[int, bool, str]:
    return ROLES.index(part.role), part.id != INHERITED, part.id


def _explain(job: ReflectionJob, child: Sequence[Strategy]) -> str:
    kinds = Counter(kind for example in job.examples for kind in diagnose(example))
    seen = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common()) or "no failure"
    return f"seen: {seen}; strategies: {', '.join(part.id for part in child) or 'none'}"


def _parse(content: Any) -> Library:
    _expect(isinstance(content, dict) and set(content) <= {"cues", "strategies"}, "may hold only cues and strategies")
    cues = {}
    for name, pattern in (content.get("cues") or {}).items():
        try:
            cues[name] = re.compile(str(pattern), re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise ReflectorError(f"cue {name}: {error}") from None
    entries = content.get("strategies")
    _expect(isinstance(entries, list) and bool(entries), "needs a list of strategies")
    strategies = [_parse_strategy(entry, number, cues) for number, entry in enumerate(entries, start=1)]
    for key in ("id", "text"):
        repeated = [value for value, n in Counter(getattr(s, key) for s in strategies).items() if n > 1]
        _expect(not repeated, f"two strategies have the {key} {repeated[:1]}")
    return Library(tuple(strategies), cues)


def _parse_strategy(entry: Any, number: int, cues: Mapping[str, object]) -> Strategy:
    _expect(isinstance(entry, dict), f"strategy {number} is not a mapping")
    where = f"strategy {entry.get('id', number)}"
    fields = {"id", "text", "role", "failures", "cues", "weight"}
    _expect(set(entry) <= fields, f"{where} has unknown fields {sorted(set(entry) - fields)}")
    for key in ("id", "text", "role"):
        _expect(isinstance(entry.get(key), str) and bool(entry[key].strip()), f"{where} needs a {key}")
    _expect(entry["role"] in ROLES, f"{where}: role {entry['role']} is none of {', '.join(ROLES)}")
    for key, known in (("failures", KINDS), ("cues", cues)):
        unknown = set(entry.get(key) or ()) - set(known)
        _expect(not unknown, f"{where}: unknown {key} {sorted(unknown)}, known are {', '.join(known)}")
    weight = entry.get("weight", 1.0)
    _expect(isinstance(weight, int | float) and weight > 0, f"{where}: weight must be above 0")
    return Strategy(
        id=entry["id"],
        text=entry["text"].strip(),
        role=entry["role"],
        failures=frozenset(entry.get("failures") or ()),
        cues=frozenset(entry.get("cues") or ()),
        weight=float(weight),
    )


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ReflectorError(message)
