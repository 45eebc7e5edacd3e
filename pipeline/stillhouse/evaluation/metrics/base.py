"""The seam of metrics: what answers are worth against their references.

    metrics: [exact-match, {kind: edit-distance, unit: words}]

A metric is a module in this folder (or an entry point `stillhouse.metrics`) with one function

    def open_metric(options: dict[str, Any]) -> Metric

Every answer gives a few numbers, its statistics, and the score is a function of their sums. A mean is (value, 1) a row and
the quotient of the sums; an error rate is (edits, words) and the same quotient; a score of a whole corpus sums the counts
that it is made of. So each resample of prompts is one sum, and every metric gets its interval in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

import stillhouse.evaluation.metrics
from stillhouse.errors import RecipeError
from stillhouse.plugins import METRICS, load_kind
from stillhouse.recipe.evaluate import MetricSettings
from stillhouse.recipe.faults import raise_all

Floats = npt.NDArray[np.float64]


@runtime_checkable
class Metric(Protocol):
    """One metric with its options."""

    @property
    def name(self) -> str:
        """The column's header, where the recipe gives no other."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a worse answer has the higher score."""

    @property
    def percent(self) -> bool:
        """Whether 0.5 is shown as 50 %."""

    @property
    def digits(self) -> int:
        """How many are shown behind the point."""

    def statistics(self, answer: str, reference: str) -> tuple[float, ...]:
        """The k numbers of one answer; finite, and k is the same for all. The reference is never blank."""

    def score(self, totals: Floats) -> Floats:
        """(..., k) sums of statistics over some answers -> (...) scores, finite."""


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the name of its column."""

    name: str
    metric: Metric


def quotient(totals: Floats) -> Floats:
    """The first sum by the second, 0 where that is 0: (..., 2) -> (...). The score of means and of rates."""
    above, below = totals[..., 0], totals[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def open_metrics(settings: Sequence[MetricSettings], where: str = "evaluate.metrics") -> list[NamedMetric]:
    """The metrics of a recipe, in its order; `where` is their place in it.

    Raises:
        RecipeError: there is no such kind, an option is wrong, or two columns would have the same name; all that are
            wrong are told.
    """
    opened: list[NamedMetric] = []
    faults: list[RecipeError] = []
    for place, one in enumerate(settings):
        try:
            metric = _open_metric(f"{where}.{place}", one)
            if any(metric.name == other.name for other in opened):
                raise RecipeError(
                    f"{where}.{place}: the metric {metric.name!r} is there twice; give one another `name`, for instance "
                    f"{{kind: {one.kind}, name: another}}"
                )
            opened.append(metric)
        except RecipeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def _open_metric(where: str, settings: MetricSettings) -> NamedMetric:
    build: Callable[[dict[str, Any]], Any] = load_kind(
        f"{where}.kind", settings.kind, stillhouse.evaluation.metrics, "open_metric", group=METRICS
    )
    metric = build(settings.options)
    if not isinstance(metric, Metric):
        lacks = [name for name in _PARTS if not hasattr(metric, name)]
        raise RecipeError(f"{where}.kind is {settings.kind!r}, and its metric has no {', '.join(lacks)}: see Metric")
    return NamedMetric(settings.name or metric.name, metric)


_PARTS = ("name", "lower_is_better", "percent", "digits", "statistics", "score")
