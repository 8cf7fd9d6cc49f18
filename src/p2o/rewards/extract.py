"""Where in a response is the answer? Pure functions from text to text, each one pass over the last part of it.

A method returns the answer that it found, stripped (``whole`` alone leaves it as it is), or None. None of them judges:
``\\boxed{}`` is not parsed here.
Every method takes linear time on any input; nothing recurses and no pattern can backtrack further than a few dozen
characters.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

TAIL = 200_000
"""Characters at the end of a response that are searched; four times the longest response of the paper."""

_BARE_LIMIT = 500
_BOX_OR_BRACE = re.compile(r"\\{1,4}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BOX_GAP = 60
"""Boxes further apart than this are separate statements, of which the last counts."""
_GAP_NOISE = re.compile(r"\\[a-zA-Z]+|[^a-zA-Z]")
_CONNECTIVES = frozenset(
    ["and", "or", "also", "either", "maybe", "perhaps", "possibly", "for", "part", "parts", *"abcd", "i", "ii", "iii"]
)
_MARKER = re.compile(r"\banswers?\b[*_ \t]{0,4}(?:(?:is|are)\b[*_ \t]{0,4}:?|[:=]|(?=\$|\\[(\[]))", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)")
_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]{1,2000})\$\$|\$(?P<b>[^$\n]{1,2000})\$"
    r"|\\\((?P<c>(?:[^\\]|\\(?![()])){1,2000})\\\)|\\\[(?P<d>(?:[^\\]|\\(?![\[\]])){1,2000})\\\]"
)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-+\u2212])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:/[0-9]+)?"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textnormal|mbox|mathrm)\s?\{[^{}]{0,200}\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-z*]{1,20}\}(?:\{[a-z|]{0,20}\})?|\\[a-zA-Z]+")
_WORD_CHARACTER = re.compile(r"\w")
_WORD = re.compile(r"[A-Za-z]{2,}")


def boxed(text: str) -> str | None:
    r"""Content of the last closed ``\boxed{}``, or of the last few, joined by commas, if they form one list.

    Boxes that only "and", "or", a comma or the like keep apart are one answer with several values, so that
    ``\boxed{1} or \boxed{2}`` is the list ``1, 2`` and not two answers of which the better one counts.
    """
    boxes: list[tuple[int, int, int]] = []  # start of the command, start and end of the content
    open_braces: list[tuple[int, int] | None] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_braces.append(None)
        elif token == "}":
            box = open_braces.pop() if open_braces else None
            if box is not None and text[box[1] : match.start()].strip():
                boxes.append((*box, match.start()))
        elif len(token) > 2:
            open_braces.append((match.start(), match.end()))
    if not boxes:
        return None
    values = [text[boxes[-1][1] : boxes[-1][2]].strip()]
    start = boxes[-1][0]
    for left, content, end in reversed(boxes[:-1]):
        if left > start:  # inside the box that was taken last
            continue
        if not _connects(text[end + 1 : start]):
            break
        value = text[content:end].strip()
        if value not in values:
            values.append(value)
        start = left
    return ", ".join(reversed(values))


def _connects(gap: str) -> bool:
    if len(gap) > _BOX_GAP or "\n\n" in gap or "=" in gap:
        return False
    return all(word in _CONNECTIVES for word in _GAP_NOISE.sub(" ", gap.lower()).split())


def answer_line(text: str) -> str | None:
    """What follows the last "Answer:" or "answer is": the rest of that sentence, or the lines below the marker."""
    last = _last_match(_MARKER, text)
    if last is None:
        return None
    line, _, below = text[last.end() :].partition("\n")
    value = _SENTENCE_END.split(line.strip(), maxsplit=1)[0]
    if not _WORD_CHARACTER.search(value):
        value = below.strip().partition("\n\n")[0]
    return value.strip(" \t\n*") or None


def bare(text: str) -> str | None:
    """The whole text if it is an answer by itself (``\\frac{1}{2}``, ``10 weeks``, ``odd``) and not a sentence."""
    text = text.strip()
    if not text or len(text) > _BARE_LIMIT or "boxed{" in text:
        return None
    formula = _FORMULA.search(text)
    if formula and _WORD.search(_COMMAND.sub(" ", text[: formula.start()])):
        return None
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT_COMMAND.sub(" ", text)))
    return text if len(words) < 3 else None


def last_formula(text: str) -> str | None:
    r"""Content of the last ``$…$``, ``\(…\)`` or ``\[…\]``, unless a plain number comes after it."""
    last = _last_match(_FORMULA, text)
    if last is None or _NUMBER.search(text, last.end()):
        return None
    content = next(group for group in last.groups() if group is not None).strip()
    return content if bare(content) else None


def last_number(text: str) -> str | None:
    """The last number: an integer, a decimal or a fraction ``a/b``, without thousands separators."""
    reversed_digit = re.search("[0-9]", text[::-1])
    if reversed_digit is None:
        return None
    end = len(text) - reversed_digit.start()
    last = _last_match(_NUMBER, text[max(0, end - 400) : end])
    return last.group().replace(",", "").replace("\u2212", "-").lstrip("+") if last else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def whole(text: str) -> str | None:
    """All of the text, as it stands; nothing if it is blank."""
    return text if text.strip() else None


METHODS: Mapping[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "answer_line": answer_line,
    "bare": bare,
    "last_formula": last_formula,
    "last_number": last_number,
    "whole": whole,
}


def extract_answer(text: str, methods: Sequence[str], *, mathematical: bool = False) -> str | None:
    """The answer by the first of ``methods`` that finds one in the last :data:`TAIL` characters, else None.

    With ``mathematical`` an answer line that is a sentence ("The area of $ABC$ is 12.") is cut down to the formula or
    number that it ends with.
    """
    tail = text[-TAIL:]
    for name in methods:
        found = METHODS[name](tail)
        if found is not None:
            if mathematical and name == "answer_line" and bare(found) is None:
                return last_formula(found) or last_number(found) or found
            return found
    return None
