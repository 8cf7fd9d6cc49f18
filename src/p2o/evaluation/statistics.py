"""What graded answers say about a model, and how sure that is. Questions are the units that are drawn anew.

Q questions, each answered n times with c correct answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
"""One number a question [Q], such as the share of its answers that are correct."""

BATCH = 500
"""Resamples that are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval and how it was found."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals and permutation tests are made. The same seed gives the same interval."""

    confidence: float
    resamples: int
    seed: int

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def mean_interval(sets: Sequence[Values], how: Resampling) -> Interval | None:
    """Interval of the mean over ``sets`` of their means, by the percentile bootstrap over questions within each set.

    Where no set varies there is nothing to resample: a single set of zeros or ones gets the exact binomial
    (Clopper-Pearson) interval, anything else None.
    """
    if all(np.all(values == values[0]) for values in sets):
        return _binomial(sets[0], how) if len(sets) == 1 else None
    found = stats.bootstrap(
        tuple(sets),
        _mean_of_means,
        n_resamples=how.resamples,
        batch=BATCH,
        vectorized=True,
        confidence_level=how.confidence,
        method="percentile",
        random_state=how.generator(),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), "bootstrap")


def _mean_of_means(*sets: Values, axis: int = -1) -> Values:
    means: Values = np.mean([np.mean(values, axis=axis) for values in sets], axis=0)
    return means


def _binomial(values: Values, how: Resampling) -> Interval | None:
    if values[0] not in (0.0, 1.0):
        return None
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(how.confidence, method="exact")
    return Interval(float(found.low), float(found.high), "exact binomial")


@dataclass(frozen=True, slots=True)
class Difference:
    """This model less the other one on the same questions: mean, interval, and a two-sided test of "no difference"."""

    questions: int
    mean: float
    interval: Interval | None
    better: int
    worse: int
    p_value: float
    test: str


def compare(ours: Values, theirs: Values, how: Resampling, *, single: bool) -> Difference:
    """Paired by position: ``ours[i]`` and ``theirs[i]`` belong to the same question.

    The interval is the bootstrap's over the questions' differences. The test is McNemar's exact one where both sides
    gave a ``single`` answer to each question, else the permutation test that swaps the sides of questions.
    """
    differences = ours - theirs
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if single:
        test = "exact McNemar"
        p_value = float(stats.binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0
    else:
        test = "paired permutation"
        p_value = _permutation(ours, theirs, how)
    interval = mean_interval([differences], how) if better + worse else None
    return Difference(len(differences), float(differences.mean()), interval, better, worse, p_value, test)


def _permutation(ours: Values, theirs: Values, how: Resampling) -> float:
    found = stats.permutation_test(
        (ours, theirs),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=how.resamples,
        batch=BATCH,
        random_state=how.generator(),
    )
    return float(found.pvalue)
