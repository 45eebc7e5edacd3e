"""Select the prompts that every model answers, and score the answers with the task metrics.

    prompts = select_prompts(rows, settings)                        # the prompts that every model answers
    scores = score(metrics, answers, references, student=..., teacher=...)  # with intervals and paired differences

All models are scored on the same prompts with the same resamples, so differences between models are paired: their
intervals are narrower than the models' separate intervals suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.errors import RecipeError
from stillhouse.evaluation.measures.bootstrap import Floats, interval_of_figures, mean_per_prompt, resampled_totals
from stillhouse.evaluation.metrics.base import NamedMetric
from stillhouse.evaluation.results import Interval, MetricColumn
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion
from stillhouse.text import token_f1


@dataclass(frozen=True)
class EvaluationPrompts:
    """The rows whose prompts every model answers."""

    rows: tuple[Completion, ...]
    answers_shown: int  # number of rows, from the first, whose answers the report shows
    with_reference: tuple[int, ...]  # indices of the rows with a reference
    without_reference: int  # number of rows without a reference


@dataclass(frozen=True)
class Scores:
    """Scores of all models, keyed by metric name."""

    columns: tuple[MetricColumn, ...]
    models: tuple[dict[str, Interval], ...]  # in the order of the models
    differences: tuple[dict[str, Interval], ...]  # the student minus each model
    kept: dict[str, Interval]  # student's score / teacher's score, for metrics where higher is better
    shares: tuple[dict[str, Interval], ...]  # the same ratio for every model


def select_prompts(rows: Sequence[Completion], settings: EvaluateSettings) -> EvaluationPrompts:
    """Return the first row of each held-out prompt."""
    first: dict[str, Completion] = {}
    for row in rows:
        first.setdefault(row.prompt.id, row)
    selected = tuple(first.values())
    with_reference = tuple(index for index, row in enumerate(selected) if has_reference(row))
    shown = min(settings.answers, len(selected))
    return EvaluationPrompts(selected, shown, with_reference, len(selected) - len(with_reference))


def has_reference(row: Completion) -> bool:
    """Whether the row's prompt has a reference that is not blank."""
    return bool(row.prompt.reference and row.prompt.reference.strip())


def require_references(recipe: Recipe, metrics: Sequence[NamedMetric], prompts: EvaluationPrompts) -> None:
    """Refuse metrics if no held-out prompt has a reference.

    Raises:
        RecipeError: the recipe has metrics, and no held-out prompt has a reference.
    """
    if metrics and not prompts.with_reference:
        names = ", ".join(one.name for one in metrics)
        raise RecipeError(
            f"evaluate.metrics ({names}) needs references, and none of the {prompts.without_reference} held-out "
            "prompts has one",
            setting="prompts.reference",
            value=recipe.prompts.reference,
            fix="set it to the column with the gold answers and label again, or remove evaluate.metrics",
        )


def score(
    metrics: Sequence[NamedMetric],
    answers: Sequence[Sequence[str]],
    references: Sequence[str],
    *,
    student: int,
    teacher: int | None,
) -> Scores:
    """Score every model's answers.

    Args:
        metrics: the task metrics.
        answers: each model's answers, one per reference.
        references: the gold answers.
        student: the student's index in `answers`.
        teacher: the teacher's index in `answers`; None: the teacher has no answers, and no shares are computed.

    Raises:
        RecipeError: a metric returns statistics or scores of a wrong shape, or that are not finite.
    """
    parts = [[_statistics(one, written, references) for one in metrics] for written in answers]
    columns = np.concatenate([part for row in parts for part in row], axis=1)
    totals = np.concatenate(
        [columns.sum(axis=0, keepdims=True), resampled_totals(columns)]
    )  # all prompts, then each resample
    ends = np.cumsum([part.shape[1] for row in parts for part in row])
    cut = iter(np.split(totals, ends[:-1], axis=1))
    # (models, metrics, 1 + resamples)
    drawn = np.stack([np.stack([_scores(one, next(cut)) for one in metrics]) for _ in answers])

    def intervals(figures: Floats) -> dict[str, Interval]:
        """Return intervals by metric name, from (metrics, 1 + resamples)."""
        return {one.name: interval_of_figures(row) for one, row in zip(metrics, figures, strict=True)}

    def share(figures: Floats) -> dict[str, Interval]:
        """Return intervals of the ratio to the teacher's score by metric name, from (metrics, 1 + resamples)."""
        return {
            one.name: interval_of_figures(figures[place] / drawn[teacher, place])
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
    """Return the token F1 of the answers to prompts that have a reference; None if no prompt has one."""
    scored = [
        token_f1(answer, row.prompt.reference)
        for row, answer in zip(rows, answers, strict=True)
        if row.prompt.reference
    ]
    return mean_per_prompt(scored) if scored else None


def _column(one: NamedMetric) -> MetricColumn:
    metric = one.metric
    return MetricColumn(one.name, metric.lower_is_better, metric.percent, metric.digits)


def _statistics(one: NamedMetric, answers: Sequence[str], references: Sequence[str]) -> Floats:
    """Return the metric's statistics of each answer, (prompts, k)."""
    rows = [one.metric.statistics(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    sizes = sorted({len(row) for row in rows})
    if len(sizes) != 1 or sizes[0] == 0:
        raise RecipeError(
            f"the metric {one.name!r} returns {sizes} statistics per answer: the number must be the same for all, and "
            "not 0",
            setting="evaluate.metrics",
            fix="correct the metric's `statistics`",
        )
    statistics = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(statistics).all():
        place = int(np.argmin(np.isfinite(statistics).all(axis=1)))
        raise RecipeError(
            f"the metric {one.name!r} returns {rows[place]} for the answer {answers[place]!r}: statistics must be finite",
            setting="evaluate.metrics",
            fix="correct the metric's `statistics`",
        )
    return statistics


def _scores(one: NamedMetric, totals: Floats) -> Floats:
    """Return the metric's scores of the totals: (1 + resamples, k) -> (1 + resamples,)."""
    scored: Floats = np.asarray(one.metric.score(totals), dtype=np.float64)
    if scored.shape != totals.shape[:1]:
        raise RecipeError(
            f"the metric {one.name!r} returns scores of shape {scored.shape} for totals of shape {totals.shape}: the shape "
            f"must be {totals.shape[:1]}, one score for each",
            setting="evaluate.metrics",
            fix="correct the metric's `score`",
        )
    if not np.isfinite(scored).all():
        place = int(np.argmin(np.isfinite(scored)))
        raise RecipeError(
            f"the metric {one.name!r} scores the sums {totals[place].tolist()} as {scored[place]}: scores must be finite",
            setting="evaluate.metrics",
            fix="correct the metric's `score`",
        )
    return scored
