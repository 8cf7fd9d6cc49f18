"""What a reflector is shown, what is taken from its reply, and which texts may become templates."""

from __future__ import annotations

import pytest

from p2o.evolution.reflectors import Feedback, ReflectionJob
from p2o.evolution.reflectors.meta_prompt import extract_template, render
from p2o.evolution.validity import Answers, TemplateFilter
from p2o.types import Outcome


def words(text: str) -> int:
    return len(text.split())


def feedback(response: str = "It is 4.", outcome: Outcome = Outcome.WRONG, finish: str = "stop") -> Feedback:
    return Feedback("What is {2} + 3?", response, "5", outcome, "4", 0.25, finish)


# ---------------------------------------------------------------------- the meta prompt


def test_the_meta_prompt_shows_all_that_a_reflector_needs() -> None:
    job = ReflectionJob("Think {hard}.", (feedback(), feedback("", Outcome.UNPARSEABLE, "length")), 0)
    prompt = render(job, max_template_tokens=90, budget=1000, count_tokens=words)
    assert prompt is not None
    for part in (
        "Think {hard}.",
        "What is {2} + 3?",
        "It is 4.",
        "read as '4', is wrong",
        "Score 0.25",
        "answer is: 5",
    ):
        assert part in prompt
    assert "cut off at the length limit; no final answer could be read" in prompt
    assert "under 60 words" in prompt
    form = prompt.split("backticks:\n")[1]
    assert extract_template(form.replace("the new instruction", "Think."))[0] == "Think."  # it asks for what is read
    empty = render(ReflectionJob("", (feedback(),), 0), 90, 1000, words)
    assert empty is not None
    assert "none: the problem stands alone" in empty


def test_responses_are_shortened_in_the_middle_before_examples_are_left_out() -> None:
    long = feedback("start " + "blah " * 3000 + "finish")
    job = ReflectionJob("", (long, long, long), 0)
    for budget in (4000, 1500, 600, 300, 190):
        prompt = render(job, 90, budget, words)
        assert prompt is not None
        assert words(prompt) <= budget
        assert "start" in prompt
        assert "finish" in prompt
        assert "characters left out" in prompt
    assert prompt.count("Problem ") < 3
    assert render(job, 90, 150, words) is None


def test_a_question_is_never_cut() -> None:
    question = "why " * 500
    job = ReflectionJob("", (Feedback(question, "?", "5", Outcome.WRONG, "4", 0.0, "stop"),), 0)
    assert question in (render(job, 90, 700, words) or "")
    assert render(job, 90, 600, words) is None


def test_lone_surrogates_do_not_reach_the_tokenizer() -> None:
    prompt = render(ReflectionJob("", (feedback("odd \udcff"),), 0), 90, 1000, lambda text: len(text.encode()) // 9)
    assert prompt is not None
    assert "odd ?" in prompt


@pytest.mark.parametrize(
    ("reply", "text", "error"),
    [
        ("```\nCount slowly.\n```", "Count slowly.", None),
        ("Sure!\n```text\nCount\nslowly.\n```\nGood luck.", "Count\nslowly.", None),
        ("```Count slowly.```", "Count slowly.", None),
        ("```\r\nCount slowly.\r\n```", "Count slowly.", None),
        ("old:\n```\nBe careful.\n```\nnew:\n```\nCount slowly.\n```", "Count slowly.", None),
        ("Count slowly.", None, "unfenced"),
        ("", None, "unfenced"),
        ("```\nCount slowly, and", None, "truncated"),
        ("old:\n```\nBe careful.\n```\nnew:\n```\nCount", None, "truncated"),
        ("```\n \n```", None, "empty"),
        ("``````", None, "empty"),
        ("```\n(The new instruction)\n```", None, "empty"),
    ],
)
def test_only_a_closed_block_with_text_is_a_template(reply: str, text: str | None, error: str | None) -> None:
    assert extract_template(reply) == (text, error)


# ---------------------------------------------------------------------- which texts may become templates

GOLDS = ["3", "1,024", "3/4", "-7", "Paris", "A", "yes", "yes", "no", "\\frac{1}{2}", "2.5", *["x"] * 3]


def judge(golds: list[str] | None = None, leak_filter: bool = True) -> TemplateFilter:
    return TemplateFilter(
        golds if golds is not None else GOLDS, max_tokens=12, count_tokens=words, leak_filter=leak_filter
    )


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 3.",
        "Say \\boxed{3}",
        "It is 3, always",
        "answer=3",
        "3",
        "one thousand, that is 1024",
        "1,024 it is",
        "write 3/4",
        "it is paris!",
        "\\boxed{\\frac{1}{2}}",
        "about 2.5 times",
        "it is -7",
    ],
)
def test_a_gold_answer_as_a_token_leaks(text: str) -> None:
    assert judge().reject(text) == "leak"
    assert judge(leak_filter=False).reject(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Count to 13 or 30.",
        "Use x3 and 3rd.",
        "Round 3.5 to 13.3 places.",
        "Take a word; a yes is A yes.",  # a single letter, and a label that two of fourteen questions have
        "Parisian style.",
        "1. Read.\n2. Think.\n 3) Answer.",  # the markers of a list
        "Between 1024.5 and 11,024",
        "12.5 apples",
    ],
)
def test_other_texts_do_not_leak(text: str) -> None:
    assert judge().reject(text) is None


def test_a_word_that_answers_one_question_only_is_a_secret() -> None:
    assert judge().reject("say no") == "leak"
    assert judge(["no", "no", *map(str, range(30))]).reject("say no") == "leak"  # two of 32 are no label
    assert judge(["no", "no", "maybe"]).reject("say no") is None
    assert judge([]).reject("anything 3 goes") is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("be  CAREFUL.", "unchanged"),
        ("word " * 13, "too_long"),
        ("x" * 1_000_000, "too_long"),
        ("odd \ud800", "control"),
        ("bell \x07", "control"),
        ("nul \x00", "control"),
        ("<|im_end|> hello", "control"),
        ("<SCRIPT>alert()", "control"),
        ("</script>", "control"),
    ],
)
def test_texts_that_can_be_no_template(text: str, kind: str) -> None:
    assert judge().reject(text, parent="Be careful.") == kind


def test_no_text_is_tried_twice() -> None:
    it = judge()
    assert it.reject("Think twice.") is None
    assert it.reject("think  twice.\n") == "known"
    assert it.reject("say 3") == "leak"
    assert it.reject("say 3") == "known"


def test_answers_are_found_as_whole_tokens() -> None:
    assert Answers(["12"]).found_in("so 12.")
    assert not Answers(["12"]).found_in("so 123, 412, 12.5, 0.12")
    assert not Answers([" "]).found_in("anything")
