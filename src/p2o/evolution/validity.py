"""Which proposed texts may become templates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]|<\|[^|>\s]{1,40}\|>|</?script|<!--", re.IGNORECASE)
"""What a template may not contain: control characters and lone surrogates (no tokenizer or file takes them), chat
markers (they would end the user's message), and markup that would escape into gepa's page of candidates."""

LIST_MARKER = re.compile(r"^[ \t]*\(?\d{1,2}[.):](?=\s)", re.MULTILINE)
CHARACTERS_PER_TOKEN = 32
"""More than any tokenizer packs into a token of prose, on average: longer texts need not be counted."""


class Answers:
    """Finds answers in texts: as whole tokens, whatever the case, thousands separators and spacing."""

    def __init__(self, answers: Iterable[str]) -> None:
        forms = {form for answer in answers if (form := _normal(answer))}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        # A number is not a token inside a longer one, on either side of the decimal point.
        pattern = rf"(?<!\w)(?<!\d\.)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)(?!\.\d)"
        self._pattern = re.compile(pattern) if forms else None

    def found_in(self, text: str) -> bool:
        return self._pattern is not None and self._pattern.search(_normal(text)) is not None


class TemplateFilter:
    """Judges proposals; remembers every text that it has seen, so that none is evaluated twice.

    ``golds`` are the gold answers of the hard set, one per question, and ``leak_filter`` rejects templates that
    contain one: as a whole token, in any case, thousands separators aside. A gold with a digit counts however short
    it is ("3" leaks in "the answer is 3" and not in "13", "3.5" or "x3"), except as the marker of a numbered list. A
    gold without digits does not count if it is a single letter, or if it answers at least two questions and a tenth of
    all: an instruction needs such labels ("yes", "B"), and they give no question away.
    """

    def __init__(
        self, golds: Iterable[str], *, max_tokens: int, count_tokens: Callable[[str], int], leak_filter: bool = True
    ) -> None:
        self.max_tokens = max_tokens
        self.count_tokens = count_tokens
        self._secrets = Answers(_secrets(golds) if leak_filter else ())
        self._seen = {""}

    def reject(self, text: str, parent: str = "") -> str | None:
        """Why ``text`` may not become a template, or None.

        empty | unchanged (its parent's text) | known (proposed before) | control | too_long | leak
        """
        form = _normal(text)
        if not form:
            return "empty"
        if form == _normal(parent):
            return "unchanged"
        if form in self._seen:
            return "known"
        self._seen.add(form)
        if CONTROL.search(text):
            return "control"
        if self._too_long(text):
            return "too_long"
        return "leak" if self._secrets.found_in(LIST_MARKER.sub(" ", text)) else None

    def _too_long(self, text: str) -> bool:
        # Counted with the blank line that separates it from the question.
        return len(text) > CHARACTERS_PER_TOKEN * self.max_tokens or self.count_tokens(f"{text}\n\n") > self.max_tokens


def _secrets(golds: Iterable[str]) -> list[str]:
    counts = Counter(_normal(gold) for gold in golds)
    total = counts.total()

    def label(gold: str) -> bool:
        common = counts[gold] >= 2 and counts[gold] * 10 >= total
        return not any(c.isdigit() for c in gold) and (len(gold) < 2 or common)

    return [gold for gold in counts if not label(gold)]


def _normal(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", " ".join(text.split()).casefold())
