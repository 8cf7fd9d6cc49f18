"""Does an engine hold the trainer's weights, and does it report the log-probs that the trainer means?

After every sync the engine continues a fixed text, and both score what it drew. An adapter that bound to no module,
weights that were only half replaced, or another base model show as a difference that no rounding explains; so does,
later, any drift.
"""

from __future__ import annotations

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
"""Tokens that the engine draws behind the text at ``TEMPERATURE``."""

CONTINUED = 48
"""Tokens that it draws behind the text at temperature 1. It is not asked to score the text itself: vLLM 0.32 on a CPU
dies of log-probs of a prompt under an adapter while it has other requests."""

TEMPERATURE = 0.6
"""Of the fewer tokens: what it does to the log-probs must be seen, so it is not 1."""

SEED = 1


class ProbeError(EngineError):
    """The engine scores the probe otherwise than the trainer does."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Tokens that the engine drew behind the text, and their log-probs by the engine."""

    continued: tuple[int, ...]
    """At temperature 1."""
    continued_logprobs: tuple[float, ...]
    drawn: tuple[int, ...]
    """At ``TEMPERATURE``."""
    drawn_logprobs: tuple[float, ...]


class Probe:
    """The fixed text as the policy's tokens, and the trainer's own scores of it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokens: tuple[int, ...] = tuple(policy.tokenizer.encode(TEXT))

    def check(self, scores: Scores, tolerance: float) -> float:
        """Mean |log-prob of the engine − log-prob of the trainer| over the tokens drawn at temperature 1.

        Raises :class:`ProbeError` if it exceeds ``tolerance``, or if the log-probs of the tokens drawn at
        ``TEMPERATURE`` are nearer to those before the temperature than to those after it.
        """
        mismatch = self._distance(scores.continued, scores.continued_logprobs, 1.0)
        if not mismatch <= tolerance:
            raise ProbeError(
                f"the engine's log-probs of what it drew behind the probe text differ from the trainer's by "
                f"{mismatch:.3f} in the mean, more than rollout.probe_tolerance={tolerance}: the engine does not hold "
                "the weights that are trained (wrong base model, adapter not applied, sync incomplete). Raise the "
                "tolerance only where the arithmetic explains the difference (model.dtype, quantisation)"
            )
        before = self._distance(scores.drawn, scores.drawn_logprobs, 1.0)
        after = self._distance(scores.drawn, scores.drawn_logprobs, TEMPERATURE)
        if not after <= before:
            raise ProbeError(
                f"the engine reports log-probs before the temperature is applied ({after:.3f} from those after it, "
                f"{before:.3f} from those before): start the server with --logprobs-mode processed_logprobs"
            )
        return mismatch

    def _distance(self, drawn: tuple[int, ...], logprobs: tuple[float, ...], temperature: float) -> float:
        """Mean |engine − trainer| over tokens drawn behind the text."""
        trainer_N = self._trainer(drawn, temperature)[len(self.tokens) - 1 :]
        return float((trainer_N - torch.tensor(logprobs)).abs().mean())

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
