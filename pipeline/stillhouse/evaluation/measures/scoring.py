"""Which prompts every model answers, and the metrics of the task: what the answers are worth.

    asked = asked_rows(rows, settings)                  # what every model answers
    scores = score(metrics, answers, asked, ...)        # with intervals, and the differences between models

Every model is scored on the same prompts and resampled together with the others: a difference is one between two models
on the very same prompts, and its interval is narrower than two intervals side by side would make one think.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.errors import RecipeError
from stillhouse.evaluation.measures.bootstrap import Floats, interval_of, mean_per_prompt, resampled_totals
from stillhouse.evaluation.metrics.base import NamedMetric
from stillhouse.evaluation.results import Interval, MetricColumn
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.load import Recipe
from stillhouse.records import Completion
from stillhouse.text import token_f1


@dataclass(frozen=True)
class Asked:
    """The rows whose prompts every model answers."""

    rows: tuple[Completion, ...]
    shown: int  # the first so many stand in the report
    scored: tuple[int, ...]  # places of those with a reference
    without: int  # held-out prompts that have none


@dataclass(frozen=True)
class Scores:
    """What the answers are worth."""

    columns: tuple[MetricColumn, ...]
    models: tuple[dict[str, Interval], ...]  # in the order of the models
    differences: tuple[dict[str, Interval], ...]  # the student less each model
    kept: dict[str, Interval]  # the student by the teacher, where higher is better
    shares: tuple[dict[str, Interval], ...]  # the same of every model


def asked_rows(rows: Sequence[Completion], settings: EvaluateSettings) -> Asked:
    """Each held-out prompt once, by its first row."""
    first: dict[str, Completion] = {}
    for row in rows:
        first.setdefault(row.prompt.id, row)
    asked = tuple(first.values())
    scored = tuple(place for place, row in enumerate(asked) if has_reference(row))
    return Asked(asked, min(settings.answers, len(asked)), scored, len(asked) - len(scored))


def has_reference(row: Completion) -> bool:
    """Whether there is a gold answer that is not blank."""
    return bool(row.prompt.reference and row.prompt.reference.strip())


def refuse_without_references(recipe: Recipe, metrics: Sequence[NamedMetric], asked: Asked) -> None:
    """Refuse metrics that there is nothing to hold answers against.

    Raises:
        RecipeError: no held-out prompt has a reference.
    """
    if metrics and not asked.scored:
        raise RecipeError(
            f"evaluate.metrics asks for {', '.join(one.name for one in metrics)}, and none of the {asked.without} held-out "
            f"prompts has a reference (prompts.reference is {recipe.prompts.reference or 'null'}): name the column that "
            "holds the gold answer in prompts.reference and label again, or take evaluate.metrics away"
        )


def score(
    metrics: Sequence[NamedMetric],
    answers: Sequence[Sequence[str]],
    references: Sequence[str],
    *,
    student: int,
    teacher: int | None,
) -> Scores:
    """Score every model's answers, one an answer to each reference; `student` and `teacher` are places among the models.

    Raises:
        RecipeError: a metric gives what cannot be summed or shown.
    """
    parts = [[_statistics(one, written, references) for one in metrics] for written in answers]
    columns = np.concatenate([part for row in parts for part in row], axis=1)
    totals = np.concatenate(
        [columns.sum(axis=0, keepdims=True), resampled_totals(columns)]
    )  # of all prompts, then of each
    ends = np.cumsum([part.shape[1] for row in parts for part in row])
    cut = iter(np.split(totals, ends[:-1], axis=1))
    # (models, metrics, 1 + resamples)
    drawn = np.stack([np.stack([_scores(one, next(cut)) for one in metrics]) for _ in answers])

    def intervals(figures: Floats) -> dict[str, Interval]:
        """(metrics, 1 + resamples) -> by name"""
        return {one.name: _interval(row) for one, row in zip(metrics, figures, strict=True)}

    def share(figures: Floats) -> dict[str, Interval]:
        """(metrics, 1 + resamples) -> by name, by the teacher's on the same prompts"""
        return {
            one.name: _interval(figures[place] / drawn[teacher, place])
            for place, one in enumerate(metrics)
            if teacher is not None and not one.metric.lower_is_better and drawn[teacher, place].min() > 0
        }

    own = drawn[student]
    shares = tuple(share(row) for row in drawn)
    return Scores(
        columns=tuple(_column(one) for one in metrics),
        models=tuple(intervals(row) for row in drawn),
        differences=tuple(intervals(own - row) for row in drawn),
        kept=shares[student],
        shares=shares,
    )


def reference_score(rows: Sequence[Completion], answers: Sequence[str]) -> Interval | None:
    """Token F1 of the answers to prompts that have a reference."""
    scored = [
        token_f1(answer, row.prompt.reference)
        for row, answer in zip(rows, answers, strict=True)
        if row.prompt.reference
    ]
    return mean_per_prompt(scored) if scored else None


def _interval(figures: Floats) -> Interval:
    """Of the figure of all prompts, and of each resample behind it."""
    return interval_of(figures[0], figures[1:])


def _column(one: NamedMetric) -> MetricColumn:
    metric = one.metric
    return MetricColumn(one.name, metric.lower_is_better, metric.percent, metric.digits)


def _statistics(one: NamedMetric, answers: Sequence[str], references: Sequence[str]) -> Floats:
    """(prompts, k)"""
    rows = [one.metric.statistics(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    sizes = sorted({len(row) for row in rows})
    if len(sizes) != 1 or sizes[0] == 0:
        raise RecipeError(
            f"the metric {one.name!r} gives {sizes} statistics an answer: it must be one number of them, not 0"
        )
    statistics = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(statistics).all():
        place = int(np.argmin(np.isfinite(statistics).all(axis=1)))
        raise RecipeError(
            f"the metric {one.name!r} gives {rows[place]} for the answer {answers[place]!r}: statistics must be finite"
        )
    return statistics


def _scores(one: NamedMetric, totals: Floats) -> Floats:
    """(1 + resamples, k) -> (1 + resamples,)"""
    scored: Floats = np.asarray(one.metric.score(totals), dtype=np.float64)
    if scored.shape != totals.shape[:1]:
        raise RecipeError(
            f"the metric {one.name!r} makes scores of shape {scored.shape} from totals of shape {totals.shape}: it must "
            f"give one for each, {totals.shape[:1]}"
        )
    if not np.isfinite(scored).all():
        place = int(np.argmin(np.isfinite(scored)))
        raise RecipeError(
            f"the metric {one.name!r} scores the sums {totals[place].tolist()} as {scored[place]}: scores must be finite"
        )
    return scored
