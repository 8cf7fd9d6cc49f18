"""The testbed's questions are right and apart, and its pre-training text says what its description says."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.latent_skill.questions import (
    FAMILIES,
    FENCE,
    WORDS,
    Example,
    families,
    instruction,
    load,
    pretraining_example,
)

from p2o.config.schema import CustomData
from p2o.evolution.reflectors.meta_prompt import extract_template
from p2o.evolution.reflectors.strategies import Library
from p2o.extensions import ExtensionError
from p2o.rewards.extract import extract_answer
from p2o.tasks import DataError

ALL = tuple(FAMILIES.values())
DATA = CustomData(
    prompt="{question}",
    train_size=60,
    val_size=40,
    factory="experiments.latent_skill.questions.load",
    params={"families": [*FAMILIES]},
)
LIBRARY = Path(__file__).parents[2] / "experiments" / "latent_skill" / "strategies.yaml"


def expected(question: str) -> str:
    """The answer by another road: the arithmetic of whole numbers where the family has one."""
    numbers = re.findall(r"\d+", question)
    match question.split()[0]:
        case "Sum":
            return str(int(numbers[0]) + int(numbers[1]))
        case "Difference":
            return str(int(numbers[0]) - int(numbers[1]))
        case "Digit":
            return "".join(str(max(int(x), int(y))) for x, y in zip(*numbers, strict=True))
        case _:
            return "".join(numbers[0][i] for i in range(3, -1, -1))


def test_gold_answers_are_right() -> None:
    train, val = load(replace(DATA, train_size=300))
    assert all(problem.answer == expected(problem.question) for problem in train + val)


def test_questions_are_distinct_in_equal_shares_and_follow_from_the_seed() -> None:
    train, val = load(DATA)
    assert (len(train), len(val)) == (60, 40)
    assert len({problem.id for problem in train + val}) == len({p.question for p in train + val}) == 100
    assert set(Counter(problem.source for problem in train).values()) == {15}
    assert set(Counter(problem.source for problem in val).values()) == {10}
    assert load(DATA) == (train, val)
    assert not {p.id for p in load(replace(DATA, seed=1))[0]} >= {p.id for p in train}


def test_more_training_questions_leave_the_held_out_ones_alone() -> None:
    assert load(replace(DATA, train_size=200))[1] == load(DATA)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"families": ["sums"]}}, r"data\.params\.families=\['sums'\]: choose some of sum, difference"),
        ({"params": {"families": []}}, r"data\.params\.families"),
        ({"params": {}}, r"data\.params\.families: .*missing"),
        ({"params": {"families": ["sum"], "famlies": []}}, r"data\.params\.famlies: .*not in"),
        ({"val_size": None}, r"set data\.train_size and val_size"),
        ({"params": {"families": ["reversal"]}, "train_size": 9000}, r"lower data\.train_size"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_key(change: dict[str, object], message: str) -> None:
    with pytest.raises((DataError, ExtensionError), match=message):
        load(replace(DATA, **change))


def text(leak: float, count: int = 4000) -> list[Example]:
    rng = random.Random(0)
    return [pretraining_example(ALL, leak, rng) for _ in range(count)]


def examples(leak: float) -> list[Example]:
    """Those that answer a question."""
    return [example for example in text(leak) if not example.completion.startswith(FENCE)]


def way_of(template: str) -> str | None:
    """The family whose way a template names last."""
    named = {word: family.name for family in ALL for word in family.way}
    found = [named[word] for word in re.findall("[a-z]+", template) if word in named]
    return found[-1] if found else None


def family_of(question: str) -> str:
    return {"Sum": "sum", "Difference": "difference", "Digit": "maximum", "Reversal": "reversal"}[question.split()[0]]


def test_the_way_that_a_template_names_last_decides_what_follows_it() -> None:
    seen: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for example in examples(leak=0.0):
        named, family = way_of(example.template), family_of(example.question)
        kind = "plain" if not example.template else "none" if named is None else "own" if named == family else "other"
        seen[kind] += 1
        right[kind] += extract_answer(example.completion, ["answer_line"]) == expected(example.question)
        assert ("\n" in example.completion) == (kind in ("own", "other"))
    assert right["own"] == seen["own"] > 2000
    assert all(right[kind] < 0.01 * seen[kind] for kind in ("plain", "none", "other"))
    assert all(seen[kind] > 200 for kind in ("plain", "none", "other"))


def test_garbage_has_the_form_of_the_way_that_was_named() -> None:
    signs = {"sum": "+", "difference": "-", "maximum": ":", "reversal": None}
    for example in examples(leak=0.0):
        if named := way_of(example.template):
            steps = example.completion.split("\n")[0]
            assert set(re.sub(r"[\d =]", "", steps)) == ({signs[named]} if signs[named] else set())


def test_leak_is_the_share_of_unprompted_working() -> None:
    unprompted = [e for e in examples(leak=0.3) if way_of(e.template) is None]
    worked = [e for e in unprompted if "\n" in e.completion]
    assert len(worked) / len(unprompted) == pytest.approx(0.3, abs=0.04)
    assert all(extract_answer(e.completion, ["answer_line"]) == expected(e.question) for e in worked)


def test_guesses_are_spread_evenly() -> None:
    guesses = [e.completion[-1] for e in examples(leak=0.0) if "\n" not in e.completion]
    counts = Counter(guesses)
    assert len(counts) == 10
    assert max(counts.values()) < 2 * min(counts.values())


def test_an_instruction_without_a_way_names_none_and_is_never_empty() -> None:
    rng = random.Random(1)
    texts = [instruction((), rng) for _ in range(300)]
    assert all(text.strip() for text in texts)
    assert not any(way_of(text) for text in texts)


def test_the_library_names_each_way_once_in_words_that_are_tokens() -> None:
    library = Library.load(str(LIBRARY))
    ways = Counter(way for strategy in library.strategies if (way := way_of(strategy.text.lower())))
    assert ways == dict.fromkeys(FAMILIES, 1)
    assert not library.cues
    words = {word for strategy in library.strategies for word in re.findall("[a-z]+", strategy.text.lower())}
    assert words <= set(WORDS)


def test_families_are_looked_up_in_the_order_asked_for() -> None:
    assert [family.name for family in families(["reversal", "sum"], "model.families")] == ["reversal", "sum"]


def test_of_two_ways_the_order_alone_decides() -> None:
    named = {word: family.name for family in ALL for word in family.way}
    outcomes: Counter[bool] = Counter()
    for example in examples(leak=0.0):
        ways = [named[word] for word in re.findall("[a-z]+", example.template) if word in named]
        if len(set(ways)) == 2 and family_of(example.question) in ways:
            outcomes[extract_answer(example.completion, ["answer_line"]) == expected(example.question)] += 1
    assert sum(outcomes.values()) > 250
    assert outcomes[True] == pytest.approx(outcomes[False], rel=0.25)


def test_an_empty_fence_is_filled_with_an_instruction_that_names_a_way() -> None:
    asked = [example for example in text(leak=0.0) if example.completion.startswith(FENCE)]
    assert len(asked) / 4000 == pytest.approx(0.04, abs=0.015)
    assert all(example.question.endswith("```\nthe new instruction\n```") for example in asked)
    named = Counter(way_of(extract_template(example.completion)[0] or "") for example in asked)
    assert named.keys() == FAMILIES.keys()
    assert min(named.values()) > 20
