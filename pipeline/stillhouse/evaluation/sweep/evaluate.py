"""Measure the teacher and every student of a sweep on the held-out prompts, and report size against quality.

    evaluate_sweep(recipe, dataset)     ->  data/reports/<recipe>/sweep.{md,html,json}

A stored report for the same dataset, students and settings is reused; if only `evaluate.keep` changed, it is rendered again
without measuring. The figures are also written into the students' model cards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stillhouse.dataset.store import Dataset
from stillhouse.errors import ReportBusy, StudentMissing
from stillhouse.evaluation.evaluate import learning_dataset, settings_key
from stillhouse.evaluation.measures.held_out import (
    HeldOut,
    label_summary,
    measured_models,
    overlap_of,
    read_held_out,
    shown_answers,
    versions_of,
)
from stillhouse.evaluation.measures.measurement_task import ModelToMeasure
from stillhouse.evaluation.measures.models import MeasuredModels
from stillhouse.evaluation.measures.recipe_models import student_models, teacher_models
from stillhouse.evaluation.report.notes import measurement_notes, vocabulary_notes
from stillhouse.evaluation.report.report import ReportFiles
from stillhouse.evaluation.stored import figures_of, report_key, stored_report
from stillhouse.evaluation.sweep.choice import choose
from stillhouse.evaluation.sweep.report import NAME, sweep_table, write_sweep_report
from stillhouse.evaluation.sweep.results import SweepReport, SweptStudent
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.sweep_points import Point, points
from stillhouse.records import utc_now
from stillhouse.storage.durable import write_lock
from stillhouse.student.finished.card import write_cards
from stillhouse.student.finished.folder import StudentCard, StudentFolder, student_folder
from stillhouse.student.finished.quantize import require_torchao

_STORED = TypeAdapter(SweepReport)


@dataclass(frozen=True)
class SweepEvaluation:
    """The report, its files, and whether it is freshly measured (`fresh`) or a stored one."""

    report: SweepReport
    files: ReportFiles
    fresh: bool


@dataclass(frozen=True)
class _Finished:
    """A trained student of the sweep."""

    point: Point
    place: StudentFolder
    card: StudentCard
    learnt_from: Dataset


def evaluate_sweep(recipe: Recipe, dataset: Dataset, progress: Progress = silent) -> SweepEvaluation:
    """Measure the sweep and write its report, or return the stored one.

    Raises:
        RecipeError: the dataset has no held-out rows, no held-out prompt has the reference that a metric needs, a metric's
            settings are wrong, or a student's int8 copy needs torchao, which is not installed.
        StudentMissing: a student of the sweep has not been trained.
        DatasetRefused: the dataset is damaged.
        ReportBusy: another run is making this report.
    """
    students = [_finished(point, dataset) for point in points(recipe)]
    named = [[one.point.label, one.place.key, one.place.wants_int8] for one in students]
    settings = {name: value for name, value in settings_key(recipe.evaluate).items() if name != "baselines"}
    key = report_key(recipe, dataset, named, settings)
    folder = Path(recipe.evaluate.reports) / recipe.name
    files = ReportFiles.in_folder(folder, NAME)
    stored = stored_report(_STORED, files, key)
    held_out = _held_out(recipe, dataset, students) if stored is None else None
    with write_lock(folder, ReportBusy, keep_lock=False):
        report = _measure(recipe, dataset, students, held_out, key, progress) if held_out is not None else stored
        assert report is not None
        if report.choice.keep != recipe.evaluate.keep:
            choice = choose(report.students, report.metrics, recipe.evaluate.keep)
            report = dataclasses.replace(report, choice=choice, recipe_yaml=recipe.as_yaml())
        if report is not stored:
            write_sweep_report(report, folder)
        _update_cards(report, students)
    return SweepEvaluation(report, files, fresh=stored is None)


def _finished(point: Point, dataset: Dataset) -> _Finished:
    """Return a trained student of the sweep.

    Raises:
        StudentMissing: this student has not been trained.
    """
    mode = point.student.mode
    learnt_from = learning_dataset(point.recipe, mode, dataset) or dataset
    place = student_folder(point.recipe, point.student, mode, learnt_from, dataset)
    card = place.finished_card()
    if card is None:
        raise StudentMissing(
            f"sweep, {point.label}: {place.path} has no finished {mode} student of this recipe and dataset "
            f"{dataset.manifest.label}",
            fix="run `stillhouse distill` with the same recipe first",
        )
    return _Finished(point, place, card, learnt_from)


def _held_out(recipe: Recipe, dataset: Dataset, students: Sequence[_Finished]) -> HeldOut:
    """Return the held-out rows to measure on, after checking that all models can be measured; write nothing."""
    if any(one.place.wants_int8 for one in students):
        require_torchao()
    subjects, _ = _subjects(recipe, dataset, students)
    return read_held_out(recipe, dataset, subjects)


def _subjects(
    recipe: Recipe, dataset: Dataset, students: Sequence[_Finished]
) -> tuple[list[ModelToMeasure], list[dict[str, Any]]]:
    """Return the teacher and the students with their copies, and the sweep settings of each student and copy."""
    subjects = teacher_models(recipe)
    settings: list[dict[str, Any]] = []
    for one in students:
        own = student_models(one.point.label, one.place, one.point.student, dataset)
        settings += [one.point.settings] * len(own)
        subjects += own
    return subjects, settings


def _measure(
    recipe: Recipe, dataset: Dataset, students: Sequence[_Finished], held_out: HeldOut, key: str, progress: Progress
) -> SweepReport:
    subjects, settings = _subjects(recipe, dataset, students)
    models = measured_models(subjects, held_out, recipe, [one.learnt_from for one in students], progress)
    swept = _swept(models, settings)
    others = models.rows[: len(models.rows) - len(swept)]
    return SweepReport(
        recipe=recipe.name,
        created_at=utc_now(),
        versions=versions_of(students[-1].card),
        labels=label_summary(dataset),
        overlap=overlap_of(dataset, recipe.evaluate.near_duplicate),
        teacher=others[0] if others else None,
        students=swept,
        choice=choose(swept, models.metrics, recipe.evaluate.keep),
        answers=shown_answers(held_out.prompts, models),
        recipe_yaml=recipe.as_yaml(),
        notes=_notes(recipe, students, dataset, held_out, models),
        key=key,
        metrics=models.metrics,
    )


def _swept(models: MeasuredModels, settings: Sequence[dict[str, Any]]) -> tuple[SweptStudent, ...]:
    """Return the students and their copies, which are the last rows."""
    rows = models.rows[-len(settings) :]
    shares = models.shares[-len(settings) :] if models.shares else [{} for _ in settings]
    return tuple(SweptStudent(row, own, kept) for row, own, kept in zip(rows, settings, shares, strict=True))


def _notes(
    recipe: Recipe, students: Sequence[_Finished], dataset: Dataset, held_out: HeldOut, models: MeasuredModels
) -> tuple[str, ...]:
    quantised = next((one for one in students if one.place.wants_int8), students[0])
    rows = len(held_out.task.rows)
    measured = measurement_notes(recipe, quantised.point.student, dataset, rows, held_out.prompts, models.metrics)
    return (
        *measured,
        *vocabulary_notes(models.rows, recipe, dataset, article=""),
        "All students learnt from the same labels with the same seed. The intervals do not include what another seed would "
        "change: a small difference between two sizes may be chance in training.",
        "A student keeps a share of the teacher's score if its score divided by the teacher's, on the same prompts, is at "
        "least that share. A student is on the front if no other one is at most as large and strictly better, or strictly "
        "smaller and at least as good; "
        "intervals are not considered. A student that is broken, runs on or copies is neither chosen nor on the "
        "front, even if its scores are good; the column of the front says so.",
    )


def _update_cards(report: SweepReport, students: Sequence[_Finished]) -> None:
    """Write the report's figures into the students' model cards."""
    table = sweep_table(report)
    for one in students:
        figures = figures_of(report, table, own=one.point.label)
        write_cards(one.place.path, one.card, one.point.recipe, one.learnt_from.manifest, figures)
