"""How often and how warm a question is answered: by default as in the paper."""

from __future__ import annotations

from dataclasses import dataclass

SMALL_SET = 100
"""Sets with fewer questions are answered :data:`SAMPLES` times at :data:`TEMPERATURE`, larger ones once, greedily."""
SAMPLES = 16
TEMPERATURE = 0.6


@dataclass(frozen=True, slots=True)
class Protocol:
    """``samples`` answers a question at ``temperature`` (0 = greedy)."""

    samples: int
    temperature: float


def protocol_for(size: int, samples: int | None, temperature: float | None) -> Protocol:
    """The protocol of a set with ``size`` questions, where ``samples`` and ``temperature`` leave it open (None)."""
    if temperature is None:
        sampled = size < SMALL_SET if samples is None else samples > 1
        temperature = TEMPERATURE if sampled else 0.0
    if samples is None:
        samples = SAMPLES if size < SMALL_SET and temperature > 0 else 1
    return Protocol(samples, temperature)
