"""Does an engine hold the trainer's weights, and does it report the log-probs that the trainer means?

After every sync a fixed text is scored by both. An adapter that bound to no module, weights that were only half
replaced, or another base model show as a difference that no rounding explains; so does, later, any drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2o.policy.head import token_logprobs
from p2o.policy.model import Policy
from p2o.rollout.engine import EngineError

TEXT = (
    "A farmer has 17 sheep and buys 5 more every month. After how many months does he have 42 sheep? Let us think "
    "step by step. He needs 42 - 17 = 25 more sheep. At 5 a month that takes 25 / 5 = 5 months. The answer is 5."
)
DRAWN = 8
"""Tokens that the engine draws behind the text."""

CONTINUED = 48
"""Tokens that it draws at temperature 1 in place of scoring the text."""

TEMPERATURE = 0.6
"""Of the drawn tokens: what it does to the log-probs must be seen, so it is not 1."""

SEED = 1


class ProbeError(EngineError):
    """The engine scores the probe otherwise than the trainer does."""


@dataclass(frozen=True, slots=True)
class Scores:
    """An engine's answer: log-probs at temperature 1, and what it drew at ``TEMPERATURE``."""

    scored: tuple[float, ...]
    """Of the probe's tokens from the second on; of ``continued``, if there is any."""
    drawn: tuple[int, ...]
    drawn_logprobs: tuple[float, ...]
    continued: tuple[int, ...] = ()
    """What the engine drew behind the text at temperature 1, if it is not asked to score the text itself."""


class Probe:
    """The fixed text as the policy's tokens, and the trainer's own scores of it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokens: tuple[int, ...] = tuple(policy.tokenizer.encode(TEXT))
        self._text_N = torch.empty(0)

    def check(self, scores: Scores, tolerance: float) -> float:
        """Mean |log-prob of the engine − log-prob of the trainer| over the probe's tokens.

        Raises :class:`ProbeError` if it exceeds ``tolerance``, or where the drawn tokens' log-probs are nearer to
        those before the temperature than to those after it.
        """
        first = len(self.tokens) - 1
        self._text_N = self._trainer(scores.continued, 1.0)[first if scores.continued else 0 :]
        mismatch = self.check_again(scores.scored, tolerance)
        drawn_N = torch.tensor(scores.drawn_logprobs)
        before = float((self._trainer(scores.drawn, 1.0)[first:] - drawn_N).abs().mean())
        after = float((self._trainer(scores.drawn, TEMPERATURE)[first:] - drawn_N).abs().mean())
        if not after <= before:
            raise ProbeError(
                f"the engine reports log-probs before the temperature is applied ({after:.3f} from those after it, "
                f"{before:.3f} from those before): start the server with --logprobs-mode processed_logprobs"
            )
        return mismatch

    def check_again(self, scored: Sequence[float], tolerance: float) -> float:
        """The same by what the trainer gave the text at the last :meth:`check`, whatever it has learnt since."""
        mismatch = float((self._text_N - torch.tensor(scored)).abs().mean())
        if not mismatch <= tolerance:
            raise ProbeError(
                f"the engine's log-probs of the probe text differ from the trainer's by {mismatch:.3f} in the mean, "
                f"more than rollout.probe_tolerance={tolerance}: the engine does not hold the weights that are "
                "trained (wrong base model, adapter not applied, sync incomplete). Raise the tolerance only where the "
                "arithmetic explains the difference (model.dtype, quantisation)"
            )
        return mismatch

    @torch.no_grad()
    def _trainer(self, drawn: tuple[int, ...], temperature: float) -> Tensor:
        """The trainer's log-probs of the probe's tokens and of those drawn behind it, but the first; float32, CPU."""
        policy = self.policy
        ids_1T = torch.tensor([self.tokens + drawn], device=policy.device)
        positions_1T = torch.arange(ids_1T.shape[1], device=policy.device)[None]
        hidden_TD = policy.hidden_states(ids_1T, positions_1T, None)[0, :-1]
        weight, bias = policy.head()
        logprobs_T, _ = token_logprobs(
            hidden_TD, weight, bias, ids_1T[0, 1:], temperature=temperature, dtype=policy.dtype
        )
        return logprobs_T.cpu()
