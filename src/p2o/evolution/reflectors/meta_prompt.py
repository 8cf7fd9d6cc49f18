"""The meta prompt that asks a language model for a better template, and the strict reading of its reply."""

from __future__ import annotations

import re
from collections.abc import Callable

from p2o.evolution.reflectors.base import Feedback, ReflectionJob
from p2o.types import Outcome

PROMPT = """\
A language model is given problems, one at a time. In front of each problem stands an instruction, always the same. \
Your task is to write a better instruction.

The instruction so far:
{template}

{examples}

Find out what went wrong above and write an instruction that would have prevented it. It is used for many other \
problems too, so:
- describe a way of working: how to approach such problems, how to check the result, how to state the final answer;
- do not mention the problems above, their numbers or their answers;
- keep it under {words} words.

Write the new instruction, and nothing else, between two lines of three backticks:
```
{placeholder}
```"""

PLACEHOLDER = "the new instruction"

EXAMPLE = """\
Problem {number}:
{question}

The model wrote:
{response}

Judgement: {judgement} Score {reward:.2f}. The correct answer is: {answer}"""

NO_TEMPLATE = "(none: the problem stands alone)"
SHORTER = (None, 32000, 16000, 8000, 4000, 2000, 1000, 500, 250, 120)
"""Characters that a response may have, tried in turn until the prompt fits its budget."""

JUDGEMENTS = {
    Outcome.CORRECT: "correct.",
    Outcome.WRONG: "the final answer, read as {extracted!r}, is wrong.",
    Outcome.UNPARSEABLE: "no final answer could be read.",
    Outcome.TIMEOUT: "the final answer was too unwieldy to be checked.",
}

INFO_STRING = re.compile(r"[ \t]*[A-Za-z0-9_+-]*[ \t]*")


def render(job: ReflectionJob, max_template_tokens: int, budget: int, count_tokens: Callable[[str], int]) -> str | None:
    """The meta prompt of ``job`` in at most ``budget`` tokens; None if not even one example fits.

    Responses are shortened first, in the middle, to keep how they begin and end; then examples are left
    out. A question is never cut.
    """
    words = max(10, max_template_tokens * 2 // 3)
    for count in range(len(job.examples), 0, -1):
        for limit in SHORTER:
            examples = [_example(i, example, limit) for i, example in enumerate(job.examples[:count], start=1)]
            prompt = PROMPT.format(
                template=job.template or NO_TEMPLATE,
                examples="\n\n".join(examples),
                words=words,
                placeholder=PLACEHOLDER,
            )
            # A lone surrogate, which a model's bytes may decode to, can be neither tokenized nor sent.
            prompt = prompt.encode(errors="replace").decode()
            if count_tokens(prompt) <= budget:
                return prompt
    return None


def extract_template(reply: str) -> tuple[str | None, str | None]:
    """(template, None) from the last fenced block of ``reply``, or (None, what is wrong with it).

    A reply without a fence is ``unfenced``, one that ends inside a block ``truncated``, a block that holds no text, or
    the prompt's own placeholder, ``empty``. Nothing else is taken for a template.
    """
    parts = reply.replace("\r\n", "\n").split("```")
    if len(parts) == 1:
        return None, "unfenced"
    if len(parts) % 2 == 0:
        return None, "truncated"
    first, newline, rest = parts[-2].partition("\n")
    block = rest if newline and INFO_STRING.fullmatch(first) else parts[-2]
    text = block.strip()
    return (None, "empty") if text.strip("()<>.").casefold() in ("", PLACEHOLDER) else (text, None)


def _example(number: int, example: Feedback, limit: int | None) -> str:
    judgement = JUDGEMENTS[example.outcome].format(extracted=example.extracted)
    if example.finish_reason == "length":
        judgement = f"the response was cut off at the length limit; {judgement}"
    return EXAMPLE.format(
        number=number,
        question=example.question,
        response=_shorten(example.response, limit) or "(nothing)",
        judgement=judgement,
        reward=example.reward,
        answer=example.answer,
    )


def _shorten(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - head
    return f"{text[:head]} [... {len(text) - limit} characters left out ...] {text[-tail:]}"
