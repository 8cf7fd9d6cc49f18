"""Which lengths a run has room for: the longest sequences that an engine must hold, and the questions that fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from p2o.config.schema import Config
from p2o.rollout.prompts import PromptRenderer
from p2o.tasks import DataError
from p2o.types import Problem

log = logging.getLogger(__name__)


def longest_sequences(config: Config, renderer: PromptRenderer, context: int | None) -> dict[str, int]:
    """What the engine must have room for, by the keys that set it. Questions go no further than the model attends
    (:func:`within_context`); a reflection of Self-Ref is a message, so that its header comes on top."""
    rollout, reflector = config.rollout, config.reflector
    lengths = {"rollout.max_prompt_tokens + rollout.max_new_tokens": rollout.max_prompt_tokens + rollout.max_new_tokens}
    if context is not None:
        lengths = {keys: min(tokens, context) for keys, tokens in lengths.items()}
    if config.gepa.variant == "self_ref":
        header = len(renderer.render_chat(""))
        keys = "reflector.max_prompt_tokens + reflector.max_new_tokens + the chat header"
        lengths[keys] = reflector.max_prompt_tokens + reflector.max_new_tokens + header
    return lengths


def within_context(
    problems: Sequence[Problem], renderer: PromptRenderer, context: int | None, config: Config, what: str
) -> tuple[Problem, ...]:
    """The problems whose prompt fits, with room left for a template; the others are reported and left out.

    ``context`` is the number of positions that the model can attend to, where it is limited.
    """
    prompt, name = config.rollout.max_prompt_tokens, "rollout.max_prompt_tokens"
    if context is not None and context - config.rollout.max_new_tokens < prompt:
        prompt = context - config.rollout.max_new_tokens
        name = f"the model's {context} tokens - rollout.max_new_tokens"
    limit = prompt - config.gepa.max_template_tokens
    lengths = {problem.id: renderer.length(problem.question) for problem in problems}
    kept = tuple(problem for problem in problems if lengths[problem.id] <= limit)
    if len(kept) < len(problems):
        longest = max(lengths, key=lambda problem_id: lengths[problem_id])
        log.warning(
            "%d of %d %s questions are longer than %s - gepa.max_template_tokens = %d tokens and are left out "
            "(longest: %s, %d tokens)",
            len(problems) - len(kept),
            len(problems),
            what,
            name,
            limit,
            longest,
            lengths[longest],
        )
    if not kept:
        raise DataError(
            f"no {what} question fits into {name} - gepa.max_template_tokens = {limit} tokens: change these lengths"
        )
    return kept
