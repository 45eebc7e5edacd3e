"""Figures with their uncertainty: the bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.results import Interval

_RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


def mean_per_token(
    sums: Sequence[float], tokens: Sequence[float], transform: Callable[[Floats], Floats] = np.asarray
) -> Interval:
    """sum(sums) / sum(tokens) over prompts, through `transform`, with its 95 % interval; or another quotient of sums.

    Prompts are resampled, not tokens: the tokens of one answer depend on each other (percentile bootstrap, fixed seed).
    """
    values, counts = np.asarray(sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    resampled = transform(values[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    mean = transform(np.asarray(values.sum() / counts.sum()))
    return Interval(float(mean), float(low), float(high))


def mean_per_prompt(values: Sequence[float]) -> Interval:
    """The mean over prompts with its 95 % interval."""
    return mean_per_token(values, [1] * len(values))
