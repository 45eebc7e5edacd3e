"""The interface of metrics, which score answers against their references.

    metrics: [exact-match, {kind: edit-distance, unit: words}]

A metric is a module in this folder (or an entry point `stillhouse.metrics`) with one function

    def open_metric(options: dict[str, Any]) -> Metric

Each answer yields a few numbers, its statistics, and the score is a function of their sums over the answers. For a mean,
the statistics are (value, 1) and the score is the ratio of the sums; for an error rate they are (edits, words), with the
same ratio; a corpus-level score sums its counts. So a bootstrap resample of the prompts is one weighted sum, and every
metric gets its confidence interval the same way.
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
        """Header of the column, unless the recipe sets `name`."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower score is better, as for an error rate."""

    @property
    def percent(self) -> bool:
        """Whether to show 0.5 as 50 %."""

    @property
    def digits(self) -> int:
        """Decimal places to show."""

    def statistics(self, answer: str, reference: str) -> tuple[float, ...]:
        """Return the k statistics of one answer: finite, with the same k for all answers. `reference` is never blank."""

    def score(self, totals: Floats) -> Floats:
        """Map sums of statistics, (..., k), to finite scores, (...)."""


@dataclass(frozen=True)
class NamedMetric:
    """A metric and the name of its column."""

    name: str
    metric: Metric


def ratio(totals: Floats) -> Floats:
    """Divide the first sum by the second, 0 if that is 0: (..., 2) -> (...). The score of means and rates."""
    above, below = totals[..., 0], totals[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def open_metrics(settings: Sequence[MetricSettings], path: str = "evaluate.metrics") -> list[NamedMetric]:
    """Return the metrics of a recipe, in its order; `path` is their path in the recipe, for error messages.

    Raises:
        RecipeError: a kind is unknown, an option is wrong, or two columns have the same name; the error lists every fault.
    """
    opened: list[NamedMetric] = []
    faults: list[RecipeError] = []
    for index, one in enumerate(settings):
        try:
            metric = _open_metric(f"{path}.{index}", one)
            if any(metric.name == other.name for other in opened):
                raise RecipeError(
                    f"the metric {metric.name!r} is listed twice",
                    setting=f"{path}.{index}",
                    fix=f"give one of them another `name`, for instance {{kind: {one.kind}, name: another}}",
                )
            opened.append(metric)
        except RecipeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def _open_metric(path: str, settings: MetricSettings) -> NamedMetric:
    build: Callable[[dict[str, Any]], Any] = load_kind(
        f"{path}.kind", settings.kind, stillhouse.evaluation.metrics, "open_metric", group=METRICS
    )
    metric = build(settings.options)
    if not isinstance(metric, Metric):
        missing = [name for name in _MEMBERS if not hasattr(metric, name)]
        raise RecipeError(
            f"its metric has no {', '.join(missing)}",
            setting=f"{path}.kind",
            value=settings.kind,
            fix="implement stillhouse.Metric",
        )
    return NamedMetric(settings.name or metric.name, metric)


_MEMBERS = ("name", "lower_is_better", "percent", "digits", "statistics", "score")
