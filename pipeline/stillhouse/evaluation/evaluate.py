"""Measure teacher, baselines and student on the held-out prompts, and write the report.

    evaluate(recipe, student, dataset)     ->  data/reports/<recipe>/report.{md,html,json}

Each model runs in a separate process (measure.py); one more process compares all of them with the teacher (distance.py).
A stored report for the same dataset, students and settings is reused. The figures are also written into the students'
model cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import DatasetMissing, ReportBusy, StudentMissing
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
from stillhouse.evaluation.measures.recipe_models import student_models, teacher_models
from stillhouse.evaluation.report.importance_plot import layer_importance
from stillhouse.evaluation.report.notes import notes, vocabulary_notes
from stillhouse.evaluation.report.report import ReportFiles, write_report
from stillhouse.evaluation.report.tables import comparison_table
from stillhouse.evaluation.results import Curve, Report
from stillhouse.evaluation.stored import figures_of, report_key, stored_report
from stillhouse.models.find import find_model
from stillhouse.progress import Progress, silent
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import utc_now
from stillhouse.storage.durable import write_lock
from stillhouse.student.finished.card import write_cards
from stillhouse.student.finished.folder import StudentCard, StudentFolder, Variant, read_card, student_folder
from stillhouse.student.finished.quantize import require_torchao
from stillhouse.student.start.record import read_start

_STORED = TypeAdapter(Report)
BEFORE = "teacher before fine-tuning"
_NOT_IN_KEY = {"reports", "batch_size", "keep"}  # settings that do not change the figures


@dataclass(frozen=True)
class EvaluationResult:
    """The report, its files, and whether it is freshly measured (`fresh`) or a stored one."""

    report: Report
    files: ReportFiles
    fresh: bool


def evaluate(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent
) -> EvaluationResult:
    """Measure the recipe's models and write the report, or return the stored one.

    Raises:
        RecipeError: no held-out prompt has the reference that a metric needs, a metric's settings are wrong, or the
            student's int8 copy needs torchao, which is not installed.
        StudentMissing: a student or baseline of this recipe has not been trained.
        DatasetRefused: the dataset is damaged, or has no held-out rows.
        ReportBusy: another run is making this report.
    """
    students = _students(recipe, student, dataset)
    named = [[place.key, place.wants_int8] for place in students]
    key = report_key(recipe, dataset, named, settings_key(recipe.evaluate))
    folder = Path(recipe.evaluate.reports) / recipe.name
    files = ReportFiles.in_folder(folder)
    stored = stored_report(_STORED, files, key)
    if stored is not None:
        _update_cards(stored, recipe, dataset, students)
        return EvaluationResult(stored, files, fresh=False)
    if student.quantize:
        require_torchao()
    subjects = _subjects(recipe, student, dataset, students)
    held_out = read_held_out(recipe, dataset, subjects)
    with write_lock(folder, ReportBusy, keep_lock=False):
        report = _measure(recipe, student, dataset, students, subjects, held_out, key, progress)
        files = write_report(report, folder)
        _update_cards(report, recipe, dataset, students)
    return EvaluationResult(report, files, fresh=True)


def settings_key(settings: EvaluateSettings) -> dict[str, Any]:
    """Return the settings that the figures depend on; without an empty `metrics`, so that older reports keep their keys."""
    return settings.model_dump(exclude=_NOT_IN_KEY | (set() if settings.metrics else {"metrics"}))


def _update_cards(report: Report, recipe: Recipe, dataset: Dataset, students: Sequence[StudentFolder]) -> None:
    """Write the report's figures into the students' model cards."""
    figures = figures_of(report, comparison_table(report))
    for place in students:
        if (card := place.trained_card()) is not None:
            learnt_from = learning_dataset(recipe, place.variant, dataset)
            write_cards(place.path, card, recipe, learnt_from.manifest if learnt_from else None, figures)


def _measure(
    recipe: Recipe,
    student: StudentSettings,
    dataset: Dataset,
    students: list[StudentFolder],
    subjects: Sequence[ModelToMeasure],
    held_out: HeldOut,
    key: str,
    progress: Progress,
) -> Report:
    learnt_from = [one for place in students if (one := learning_dataset(recipe, place.variant, dataset))]
    models = measured_models(subjects, held_out, recipe, learnt_from, progress)
    cards = [card for place in students if (card := place.finished_card())]
    return Report(
        recipe=recipe.name,
        created_at=utc_now(),
        versions=versions_of(cards[-1]),
        labels=label_summary(dataset),
        overlap=overlap_of(dataset, recipe.evaluate.near_duplicate),
        models=models.rows,
        answers=shown_answers(held_out.prompts, models),
        curves=tuple(_curve(card) for card in cards if card.log),
        recipe_yaml=recipe.as_yaml(),
        notes=(
            *notes(recipe, student, dataset, len(held_out.task.rows), held_out.prompts, models.metrics),
            *vocabulary_notes(models.rows, recipe, dataset),
        ),
        key=key,
        metrics=models.metrics,
        differences=models.differences,
        kept=models.kept,
        starts=layer_importance(read_start(students[-1].path)),
        rounds=cards[-1].rounds,
    )


def _subjects(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, students: Sequence[StudentFolder]
) -> list[ModelToMeasure]:
    """Return the teacher, if it is a model that can run on this machine, and the students."""
    subjects = teacher_models(recipe)
    if subjects and _was_finetuned(recipe):
        start = find_model(recipe.teacher.model, recipe.teacher.revision)
        trusted = subjects[0].trust_remote_code
        subjects.append(ModelToMeasure(BEFORE, start.name, start.folder, trust_remote_code=trusted))
    for place in students:
        subjects += student_models(f"{place.variant} student", place, student, dataset)
    return subjects


def _students(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> list[StudentFolder]:
    """Return the folders of the recipe's baselines, with the student's folder last.

    Raises:
        StudentMissing: a student or baseline has not been trained on this dataset with these settings.
    """
    baselines: list[Variant] = [name for name in recipe.evaluate.baselines if name != student.mode]
    rounds: list[Variant] = ["on-policy"] if recipe.on_policy is not None else []
    variants = [*baselines, *([student.mode] if recipe.has_off_policy_student else []), *rounds]
    places = [student_folder(recipe, student, one, learning_dataset(recipe, one, dataset), dataset) for one in variants]
    for place in places:
        if place.finished_card() is None:
            found = read_card(place.path)
            other = (
                found is not None
                and not recipe.learns_references(place.variant)
                and found.dataset not in ("", dataset.manifest.label)
            )
            older = f"; to use the student of {found.dataset}, set dataset.version" if found and other else ""
            raise StudentMissing(
                f"{place.path} has no finished {place.variant} student of this recipe and dataset {dataset.manifest.label}",
                fix=f"run `stillhouse distill` with the same recipe first{older}",
            )
    return places


def learning_dataset(recipe: Recipe, variant: Variant, dataset: Dataset) -> Dataset | None:
    """Return the dataset that a student learns from: the labels, the references, or None for an untrained one.

    Raises:
        StudentMissing: the dataset of references does not exist, so the gold student has not been trained.
    """
    if not recipe.learns_references(variant):
        return None if variant == "untrained" else dataset
    try:
        return open_dataset(dataset_folder(recipe.dataset.gold))
    except DatasetMissing as error:
        raise StudentMissing(
            f"the recipe has no gold student: {error}",
            fix="run `stillhouse distill` with the same recipe, which makes both",
        ) from None


def _was_finetuned(recipe: Recipe) -> bool:
    """Whether the teacher was fine-tuned from a model; with fresh weights there is no teacher before it to measure."""
    tuned = recipe.teacher.finetune
    return tuned is not None and tuned.config is None


def _curve(card: StudentCard) -> Curve:
    losses = [(step.step, step.loss) for step in card.log if step.loss is not None]
    evaluations = [(step.step, step.eval_loss) for step in card.log if step.eval_loss is not None]
    return Curve(
        role=f"{card.variant} student",
        steps=tuple(step for step, _ in losses),
        loss=tuple(loss for _, loss in losses),
        evaluation_steps=tuple(step for step, _ in evaluations),
        evaluation_loss=tuple(loss for _, loss in evaluations),
    )
