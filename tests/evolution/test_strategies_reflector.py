from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2o.config.schema import GepaConfig, OpenAIReflector, ReferenceReflector, StrategiesReflector
from p2o.evolution.reflectors import Feedback, Reflection, ReflectionJob, ReflectorError, build_reflector
from p2o.evolution.reflectors import openai as openai_reflector
from p2o.evolution.reflectors import reference as reference_reflector
from p2o.evolution.reflectors import strategies as strategies_reflector
from p2o.evolution.reflectors.diagnosis import KINDS, diagnose
from p2o.evolution.reflectors.strategies import ROLES, Library
from p2o.rollout.ledger import Ledger
from p2o.types import Generation, Outcome, Phase

LETTERS = 'How many times does the letter "r" appear in the text: "4821 strawberries"?'
SUM = "State the final answer to the following arithmetic problem: 4821 + 17 ="


def feedback(
    response: str = "I count them all and I get to the number two in the end.",
    question: str = LETTERS,
    answer: str = "3",
    extracted: str | None = "2",
    outcome: Outcome = Outcome.WRONG,
    finish_reason: str = "stop",
) -> Feedback:
    return Feedback(question, response, answer, outcome, extracted, float(outcome is Outcome.CORRECT), finish_reason)


# ---------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize(
    ("example", "kinds"),
    [
        (feedback(outcome=Outcome.CORRECT), ()),
        (feedback(), ("wrong_working",)),
        (feedback("2"), ("no_working",)),
        (feedback("", extracted=None, outcome=Outcome.UNPARSEABLE), ("no_answer", "no_working")),
        (feedback(finish_reason="length", extracted=None), ("truncated", "no_answer")),
        (feedback(outcome=Outcome.TIMEOUT), ("unwieldy",)),
        (feedback(f"{LETTERS} {LETTERS} We want to know that."), ("echoed",)),
        (feedback("First \\boxed{1}. No, wait, that was one too few, so it is \\boxed{2}."), ("several_answers",)),
        (feedback("The answer is 2. I counted each of the letters with care. Answer: 2"), ("wrong_working",)),
        (feedback("I went through all of the letters twice.\nThere are 3 of them, two at the end."), ("wrong_format",)),
    ],
)
def test_failures_are_named(example: Feedback, kinds: tuple[str, ...]) -> None:
    assert diagnose(example) == kinds
    assert set(kinds) <= set(KINDS)


# ---------------------------------------------------------------------- composing

LIBRARY = Library.load()
BY_TEXT = {strategy.text: strategy for strategy in LIBRARY.strategies}


def reflect(template: str, *examples: Feedback, seeds: range = range(200)) -> list[Reflection]:
    reflector = strategies_reflector.StrategiesReflector(LIBRARY, Ledger())
    return reflector.reflect([ReflectionJob(template, examples or (feedback(),), seed) for seed in seeds])


def parts(text: str | None) -> list[str]:
    return [BY_TEXT[line].id if line in BY_TEXT else line for line in (text or "").splitlines()]


def test_the_first_instruction_fits_question_and_failure() -> None:
    chosen = Counter(part for reflection in reflect("") for part in parts(reflection.text))
    assert set(chosen) <= {strategy.id for strategy in LIBRARY.strategies}
    assert chosen["letters_one_by_one"] > 20
    assert not {"running_total", "euclid", "answer_only"} & set(chosen)
    sums = Counter(part for reflection in reflect("", feedback(question=SUM)) for part in parts(reflection.text))
    assert sums["running_total"] > 20
    assert "letters_one_by_one" not in sums
    cut = Counter(part for r in reflect("", feedback(finish_reason="length")) for part in parts(r.text))
    assert cut["be_brief"] > cut["step_by_step"] == 0


def test_an_instruction_has_one_part_a_role_and_two_methods_at_most_in_order() -> None:
    texts = [r.text for r in reflect("", feedback(), feedback("2", question=SUM))]
    for _ in range(4):  # four generations
        for text in texts:
            roles = [BY_TEXT[line].role for line in (text or "").splitlines()]
            assert roles == sorted(roles, key=ROLES.index)
            counts = Counter(roles)
            assert counts.pop("method", 0) <= 2
            assert set(counts.values()) <= {1}
        texts = [reflect(text or "", feedback("2"), seeds=range(i, i + 1))[0].text for i, text in enumerate(texts[:60])]


def test_a_child_differs_from_its_parent_by_one_strategy() -> None:
    parent = next(r.text for r in reflect("") if len(parts(r.text)) == 2)
    kinds = Counter()
    for reflection in reflect(parent or ""):
        assert reflection.text != parent
        before, after = set(parts(parent)), set(parts(reflection.text))
        assert len(before - after) <= 1
        assert len(after - before) <= 1
        kinds[len(after) - len(before)] += 1
    assert set(kinds) == {-1, 0, 1}  # dropped, replaced, added


def test_a_foreign_parent_is_kept_as_a_part_or_replaced() -> None:
    foreign = "Use your fingers.\nAnd your toes."
    children = [r.text or "" for r in reflect(f"{foreign}\nLet's think step by step.")]
    assert any(foreign in child and "Let's think step by step." not in child for child in children)
    assert any(child.startswith(foreign) for child in children)
    assert any("fingers" not in child for child in children)


def test_seeds_decide_and_differ() -> None:
    assert reflect("") == reflect("")
    assert len({r.text for r in reflect("")}) > 20


def test_nothing_of_a_question_or_an_answer_enters_a_template() -> None:
    secret = feedback(response="The answer is 9182.", question=LETTERS.replace("4821", "55113"), answer="77")
    for text in [r.text or "" for r in reflect("", secret)]:
        assert not re.search(r"\d", text)
        assert "strawberr" not in text
    assert not any(re.search(r"\d", strategy.text) for strategy in LIBRARY.strategies)


def test_nothing_to_say_is_a_failure_with_a_name() -> None:
    library = Library(tuple(replace(s, failures=frozenset({"unwieldy"})) for s in LIBRARY.strategies[:3]), LIBRARY.cues)
    reflector = strategies_reflector.StrategiesReflector(library, Ledger())
    (reflection,) = reflector.reflect([ReflectionJob("", (feedback(),), 0)])
    assert (reflection.text, reflection.error) == (None, "no_strategy")
    assert reflector.failures == {"no_strategy": 1}
    assert reflector.ledger.by_phase[Phase.REFLECTION].reflection_calls == 1


def test_every_kind_of_failure_and_every_cue_has_a_strategy() -> None:
    for kind in KINDS:
        assert any(kind in s.failures for s in LIBRARY.strategies), kind
    for cue in LIBRARY.cues:
        assert any(cue in s.cues for s in LIBRARY.strategies), cue


# ---------------------------------------------------------------------- libraries of a custom one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "may hold only cues and strategies"),
        ("cues: {a: x}\n", "needs a list of strategies"),
        ("strategies: []\n", "needs a list of strategies"),
        ("cues: {a: '('}\nstrategies: [{id: a, text: b, role: work}]", "cue a"),
        ("strategies: [{id: a, role: work}]", "strategy a needs a text"),
        ("strategies: [{id: a, text: b, role: magic}]", "role magic is none of method, work"),
        ("strategies: [{id: a, text: b, role: work, fail: [x]}]", r"strategy a has unknown fields \['fail'\]"),
        ("strategies: [{id: a, text: b, role: work, failures: [lazy]}]", r"unknown failures \['lazy'\]"),
        ("strategies: [{id: a, text: b, role: work, cues: [sky]}]", r"unknown cues \['sky'\]"),
        ("strategies: [{id: a, text: b, role: work, weight: 0}]", "weight must be above 0"),
        ("strategies: [{id: a, text: b, role: work}, {id: a, text: c, role: work}]", "two strategies have the id"),
        ("strategies: [{id: a, text: b, role: work}, {id: c, text: b, role: work}]", "two strategies have the text"),
        ("strategies: [*x]", "alias"),
    ],
)
def test_a_faulty_library_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ReflectorError, match=f"(?s)reflector.strategies={path}: .*{message}"):
        Library.load(str(path))


def test_a_library_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ReflectorError, match=r"reflector\.strategies=.*none\.yaml"):
        Library.load(str(tmp_path / "none.yaml"))


def test_a_library_of_one_s_own_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("strategies: [{id: pray, text: Pray., role: work}]")
    reflector = strategies_reflector.StrategiesReflector(Library.load(str(path)), Ledger())
    assert reflector.reflect([ReflectionJob("", (feedback(),), 0)])[0].text == "Pray."


# ---------------------------------------------------------------------- the reference model, and which reflector it is


def complete(texts: list[str], seeds: list[int]) -> list[Generation]:
    replies = ["```\nCount slowly.\n```", "Count slowly.", "```\nCount"]
    return [
        Generation((1, 2, 3), (0.0, 0.0, 0.0), replies[seed] if "two in the end" in text else "", "stop")
        for text, seed in zip(texts, seeds, strict=True)
    ]


def test_the_reference_model_is_asked_in_one_batch() -> None:
    sizes = []

    def counting(texts: list[str], seeds: list[int]) -> list[Generation]:
        sizes.append(len(texts))
        return complete(texts, seeds)

    reflector = reference_reflector.ReferenceReflector(
        counting, max_prompt_tokens=250, max_template_tokens=30, count_tokens=lambda text: len(text.split())
    )
    huge = feedback(question="why " * 300)
    jobs = [ReflectionJob("", (huge if seed == 1 else feedback(),), seed % 3) for seed in (0, 1, 4, 2)]
    reflections = reflector.reflect(jobs)
    assert sizes == [3]
    assert [r.text for r in reflections] == ["Count slowly.", None, None, None]
    assert [r.error for r in reflections] == [None, "too_long", "unfenced", "truncated"]
    assert reflector.failures == {"too_long": 1, "unfenced": 1, "truncated": 1}
    assert reflections[0].completion_tokens == 3
    assert reflections[0].prompt_tokens > 100


def test_self_ref_is_always_the_reference_model(tmp_path: Path) -> None:
    def build(config: object, variant: str) -> object:
        gepa = GepaConfig(variant=variant)
        rest: dict[str, Any] = {"count_tokens": len, "ledger": Ledger(), "run_dir": tmp_path}
        return build_reflector(config, gepa, complete, **rest)  # type: ignore[arg-type]

    openai = OpenAIReflector(model="m")
    assert isinstance(build(openai, "teacher_ref"), openai_reflector.OpenAIReflector)
    assert isinstance(build(StrategiesReflector(), "teacher_ref"), strategies_reflector.StrategiesReflector)
    for config in (openai, StrategiesReflector(), ReferenceReflector()):
        assert isinstance(build(config, "self_ref"), reference_reflector.ReferenceReflector)
    assert isinstance(build(ReferenceReflector(), "teacher_ref"), reference_reflector.ReferenceReflector)
