"""Bootstrap confidence intervals, by resampling prompts.

Prompts are resampled, not tokens, because the tokens of one answer are not independent. There are 2,000 resamples, with a
fixed seed, so that differences between models on the same prompts are paired. Intervals are percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from stillhouse.evaluation.results import Interval

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000  # random numbers per batch of resamples, 16 MB
Floats = npt.NDArray[np.float64]


def resampled_totals(statistics: Floats) -> Floats:
    """Return the sum of each column over each resample of the rows: (prompts, columns) -> (resamples, columns)."""
    rows = len(statistics)
    generator = np.random.default_rng(0)
    together = max(1, _DRAWN_AT_ONCE // rows)
    totals = []
    for start in range(0, _RESAMPLES, together):
        some = min(together, _RESAMPLES - start)
        drawn = generator.integers(0, rows, size=(some, rows))
        drawn += np.arange(some)[:, None] * rows  # offset: each resample gets its own bins for its row counts
        times = np.bincount(drawn.ravel(), minlength=some * rows).reshape(some, rows)
        totals.append(times.astype(np.float64) @ statistics)
    return np.concatenate(totals)


def interval(value: float, resampled: Floats) -> Interval:
    """Return a figure with its 95 % percentile interval over the resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def interval_of_figures(figures: Floats) -> Interval:
    """Return the interval of a figure; `figures` has its value over all prompts, then over each resample."""
    return interval(figures[0], figures[1:])


def ratio_of_sums(
    sums: Sequence[float], tokens: Sequence[float], transform: Callable[[Floats], Floats] = np.asarray
) -> Interval:
    """Return transform(sum(sums) / sum(tokens)) over prompts with its 95 % interval; works for any ratio of sums.

    The sum of all `tokens` must be above 0. Resamples whose token sum is 0 are dropped.
    """
    both = np.stack([np.asarray(sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)], axis=1)
    resampled = resampled_totals(both)
    resampled = resampled[resampled[:, 1] > 0]
    total = both.sum(axis=0)
    mean = transform(np.asarray(total[0] / total[1]))
    return interval(float(mean), transform(resampled[:, 0] / resampled[:, 1]))


def mean_per_prompt(values: Sequence[float]) -> Interval:
    """Return the mean over prompts with its 95 % interval."""
    return ratio_of_sums(values, [1] * len(values))
