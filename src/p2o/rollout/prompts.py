"""Rendering T(x, z): from a question and a template to the token ids of a chat prompt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{question}"
CACHED_PROMPTS = 8192


class PromptTooLongError(ValueError):
    """A prompt has more tokens than it may have. It is never cut: that would remove the template or the header."""

    def __init__(self, tokens: int, limit: int, subject: str = "the prompt") -> None:
        super().__init__(f"{subject} has {tokens} tokens, the limit is {limit}: shorten it or raise the limit")
        self.tokens = tokens
        self.limit = limit


class PromptRenderer:
    """Renders questions under templates with the tokenizer's own chat template.

    ``prompt`` is the plain prompt x (``data.prompt``), in which ``{question}`` stands for the question;
    ``max_prompt_tokens`` bounds what :meth:`render` returns.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        max_prompt_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if PLACEHOLDER not in prompt:
            raise ValueError(f"data.prompt has no {PLACEHOLDER}, so no question could enter it: {prompt!r}")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_prompt_tokens = max_prompt_tokens
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._encode = lru_cache(maxsize=CACHED_PROMPTS)(self._encode_uncached)

    def text(self, question: str, template: str = "") -> str:
        """T(x, z) before the chat template: the template, a blank line, the plain prompt."""
        plain = self.prompt.replace(PLACEHOLDER, question)
        return f"{template}\n\n{plain}" if template else plain

    def render(self, question: str, template: str = "") -> tuple[int, ...]:
        """Token ids of T(x, z) with the generation header; raises :class:`PromptTooLongError` over the limit."""
        tokens = self._encode(self.text(question, template))
        if len(tokens) > self.max_prompt_tokens:
            raise PromptTooLongError(len(tokens), self.max_prompt_tokens)
        return tokens

    def length(self, question: str, template: str = "") -> int:
        """Number of tokens of T(x, z), whatever the limit."""
        return len(self._encode(self.text(question, template)))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a bare text, such as a template."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def render_chat(self, text: str) -> tuple[int, ...]:
        """Token ids of one user message, e.g. a reflection prompt. Only the engine's context bounds its length."""
        return self._encode(text)

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        message = [{"role": "user", "content": text}]
        tokens = self.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=False, **self._chat_template_kwargs
        )
        return tuple(tokens)
