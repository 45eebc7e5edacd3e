"""The models' rows of the report: each model runs in a separate process, then all are compared with the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stillhouse.evaluation.measures.answer_quality import ModelAnswers, answer_qualities, answers_from_labels
from stillhouse.evaluation.measures.copying import find_copies
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.evaluation.measures.processes import fresh_processes
from stillhouse.evaluation.measures.scoring import EvaluationPrompts, reference_score, score
from stillhouse.evaluation.metrics.base import NamedMetric
from stillhouse.evaluation.results import Difference, Interval, MetricColumn, ModelRow
from stillhouse.models.find import can_load_in_process
from stillhouse.progress import Progress
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion


@dataclass(frozen=True)
class MeasuredModels:
    """The models' rows of the report, and their answers."""

    rows: tuple[ModelRow, ...]
    answers: tuple[ModelAnswers, ...]  # one per model, to the rows of `EvaluationPrompts`
    metrics: tuple[MetricColumn, ...] = ()
    differences: tuple[Difference, ...] = ()
    kept: dict[str, Interval] = dataclasses.field(default_factory=dict)
    shares: tuple[dict[str, Interval], ...] = ()  # each model's score / teacher's score, by metric


def measure_all(subjects: Sequence[ModelToMeasure], task: MeasurementTask, progress: Progress) -> MeasuredModels:
    """Measure each model's cost and its distance from the teacher, and collect its answers."""
    from stillhouse.evaluation.measures.distance import distances
    from stillhouse.evaluation.measures.measure import measure

    with fresh_processes() as pool:
        measured = []
        for done, subject in enumerate(subjects):
            progress(f"Measuring the {subject.role}", done, len(subjects) + 1)
            measured.append(pool.submit(measure, subject, task).result())
        progress("Comparing with the teacher", len(subjects), len(subjects) + 1)
        compared = pool.submit(distances, subjects, task).result()
        progress("Comparing with the teacher", len(subjects) + 1, len(subjects) + 1)
    rows = tuple(
        ModelRow(
            role=subject.role,
            model=subject.name,
            parameters=one.parameters,
            megabytes=one.megabytes,
            peak_memory_megabytes=one.peak_memory_megabytes,
            tokens_per_second=one.tokens_per_second,
            latency_p50_ms=one.latency_p50_ms,
            latency_p95_ms=one.latency_p95_ms,
            kl_per_token=distance.kl,
            agreement=distance.agreement,
            perplexity=distance.perplexity,
            reference_score=_reference_score(task.prompts, one.answers, task.settings),
            is_int8=subject.is_int8,
            lost_mass=distance.lost_mass,
        )
        for subject, one, distance in zip(subjects, measured, compared, strict=True)
    )
    return MeasuredModels(rows, tuple(one.answers for one in measured))


def _reference_score(rows: Sequence[Completion], written: ModelAnswers, settings: EvaluateSettings) -> Interval | None:
    """Return the token F1 of the answers shown in the report; None if the recipe has metrics."""
    shown = settings.answers
    return None if settings.metrics else reference_score(rows[:shown], written.texts[:shown])


def with_labels(models: MeasuredModels, prompts: EvaluationPrompts, recipe: Recipe, teacher: str) -> MeasuredModels:
    """Return `models`; if the teacher does not run on this machine, add a row for it, made from its labels.

    `teacher` is its name in the dataset: an ensemble has those of all its models.
    """
    references = recipe.label.mode != "generate"  # in other modes the labels are the references
    if can_load_in_process(recipe.teacher) or references:
        return models
    labels = answers_from_labels(prompts.rows)
    score = _reference_score(prompts.rows, labels, recipe.evaluate)
    row = ModelRow("teacher", teacher, reference_score=score)
    return MeasuredModels((row, *models.rows), (labels, *models.answers))


def with_answer_quality(
    models: MeasuredModels, prompts: EvaluationPrompts, training: Iterable[tuple[str, str]]
) -> MeasuredModels:
    """Return `models` with the quality of their answers; `training` yields (prompt id, text) of every training answer.

    Each model's answers are compared with the teacher's; if the teacher has no row, with its stored labels.
    """
    roles = [row.role for row in models.rows]
    written = [*models.answers, *([] if "teacher" in roles else [answers_from_labels(prompts.rows)])]
    copied = find_copies([one.texts for one in written], [row.prompt.id for row in prompts.rows], training)
    teacher = roles.index("teacher") if "teacher" in roles else len(roles)
    qualities = answer_qualities(written, copied, teacher)[: len(roles)]
    rows = tuple(dataclasses.replace(row, answer_quality=one) for row, one in zip(models.rows, qualities, strict=True))
    return dataclasses.replace(models, rows=rows)


def with_scores(models: MeasuredModels, metrics: Sequence[NamedMetric], prompts: EvaluationPrompts) -> MeasuredModels:
    """Return `models` with their scores by the task metrics.

    Raises:
        RecipeError: a metric returns statistics or scores of a wrong shape, or that are not finite.
    """
    if not metrics:
        return models
    roles = [row.role for row in models.rows]
    student = max(place for place, row in enumerate(models.rows) if not row.is_int8)
    scores = score(
        metrics,
        [[written.texts[place] for place in prompts.with_reference] for written in models.answers],
        [prompts.rows[place].prompt.reference or "" for place in prompts.with_reference],
        student=student,
        teacher=roles.index("teacher") if "teacher" in roles else None,
    )
    others = [place for place in range(len(roles)) if place != student]
    return MeasuredModels(
        rows=tuple(dataclasses.replace(row, scores=own) for row, own in zip(models.rows, scores.models, strict=True)),
        answers=models.answers,
        metrics=scores.columns,
        differences=tuple(Difference(roles[place], scores.differences[place]) for place in others),
        kept=scores.kept,
        shares=scores.shares,
    )
