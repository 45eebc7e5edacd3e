"""Figures with their uncertainty: the bootstrap over prompts.

Prompts are resampled, not tokens: the tokens of one answer depend on each other. 2,000 resamples, always the same ones, so
that two models on the same prompts are resampled together; intervals are percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from stillhouse.evaluation.results import Interval

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000  # numbers, 16 MB
Floats = npt.NDArray[np.float64]


def resampled_totals(statistics: Floats) -> Floats:
    """The columns' sums over each resample of the rows: (prompts, columns) -> (resamples, columns)."""
    rows = len(statistics)
    generator = np.random.default_rng(0)
    together = max(1, _DRAWN_AT_ONCE // rows)
    totals = []
    for start in range(0, _RESAMPLES, together):
        some = min(together, _RESAMPLES - start)
        drawn = generator.integers(0, rows, size=(some, rows))
        drawn += np.arange(some)[:, None] * rows  # a resample's counts of the rows stand in a part of their own
        times = np.bincount(drawn.ravel(), minlength=some * rows).reshape(some, rows)
        totals.append(times.astype(np.float64) @ statistics)
    return np.concatenate(totals)


def interval_of(value: float, resampled: Floats) -> Interval:
    """A figure with the middle 95 % of what the resamples give for it."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def mean_per_token(
    sums: Sequence[float], tokens: Sequence[float], transform: Callable[[Floats], Floats] = np.asarray
) -> Interval:
    """sum(sums) / sum(tokens) over prompts, through `transform`, with its 95 % interval; or another quotient of sums.

    The sum of all `tokens` must be above 0. A resample without a token has no quotient, and is left out.
    """
    both = np.stack([np.asarray(sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)], axis=1)
    resampled = resampled_totals(both)
    resampled = resampled[resampled[:, 1] > 0]
    total = both.sum(axis=0)
    mean = transform(np.asarray(total[0] / total[1]))
    return interval_of(float(mean), transform(resampled[:, 0] / resampled[:, 1]))


def mean_per_prompt(values: Sequence[float]) -> Interval:
    """The mean over prompts with its 95 % interval."""
    return mean_per_token(values, [1] * len(values))
