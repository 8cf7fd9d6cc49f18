"""T(x, z): where the template goes, what stays untouched, and that nothing is ever cut."""

from __future__ import annotations

import pytest

from p2o.policy.builders import byte_tokenizer
from p2o.rollout.prompts import PromptRenderer, PromptTooLongError

PROMPT = "Think, then answer in \\boxed{}.\n{question}"


def renderer(limit: int = 500, **kwargs: object) -> PromptRenderer:
    return PromptRenderer(byte_tokenizer(), PROMPT, limit, kwargs)


def text(it: PromptRenderer, tokens: tuple[int, ...]) -> str:
    return it.tokenizer.decode(tokens)


def test_plain_prompt_is_the_chat_template_around_the_question() -> None:
    it = renderer()
    expected = "<|im_start|>user\nThink, then answer in \\boxed{}.\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert text(it, it.render("1+1?")) == expected


def test_a_template_stands_before_the_prompt_and_the_empty_one_changes_nothing() -> None:
    it = renderer()
    assert "user\nCount slowly.\n\nThink, then" in text(it, it.render("1+1?", "Count slowly."))
    assert it.render("1+1?", "") == it.render("1+1?")


def test_braces_in_questions_and_templates_are_text() -> None:
    it = renderer()
    shown = text(it, it.render("{x} {question} {0}", "{question} {}"))
    assert "{question} {}\n\nThink, then answer in \\boxed{}.\n{x} {question} {0}<|im_end|>" in shown


def test_too_long_is_refused_with_both_sizes() -> None:
    size = renderer().length("1+1?")
    assert renderer(size).render("1+1?")
    with pytest.raises(PromptTooLongError, match=f"{size} tokens, the limit is {size - 1}") as caught:
        renderer(size - 1).render("1+1?")
    assert (caught.value.tokens, caught.value.limit) == (size, size - 1)
    assert len(renderer(1).render_chat("reflect")) > 1


def test_chat_template_arguments_reach_the_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[-1]['content'] }}|{{ thinking }}"
    it = PromptRenderer(tokenizer, "{question}", 100, {"thinking": "off"})
    assert text(it, it.render("q")) == "q|off"


def test_a_prompt_without_a_place_for_the_question_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.prompt has no \{question\}"):
        PromptRenderer(byte_tokenizer(), "no place", 100)
