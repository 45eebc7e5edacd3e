"""Stored reports: the key that identifies a report, loading one, and its figures for the students' model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.report.answer_warnings import warning_of
from stillhouse.evaluation.report.report import ReportFiles
from stillhouse.evaluation.report.tables import ComparedModels, answer_quality_table
from stillhouse.models.find import can_load_in_process, find_model, labelling_files
from stillhouse.plugins import METRICS, plugin_code_key
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import content_hash
from stillhouse.student.finished.card import Figures

FIGURES_VERSION = 3  # version of the figures; a higher one invalidates older reports


def report_key(recipe: Recipe, dataset: Dataset, students: object, settings: Mapping[str, Any]) -> str:
    """Return a hash of everything that a report's figures depend on.

    Args:
        recipe: the recipe whose models are measured.
        dataset: the dataset whose held-out rows they are measured on.
        students: JSON values that identify the students.
        settings: the settings of `evaluate` that the figures depend on.
    """
    return content_hash(
        {
            "students": students,
            "dataset": [dataset.manifest.plan_sha256, [file.sha256 for file in dataset.manifest.files]],
            "settings": settings,
            "metrics": [plugin_code_key(METRICS, one.kind) for one in recipe.evaluate.metrics],
            "teacher": _teacher(recipe.teacher),
            "answers": [recipe.label.mode, recipe.label.sampling.max_tokens],
            "figures": FIGURES_VERSION,
        }
    )


def _teacher(teacher: TeacherSettings) -> list[str]:
    """Return hashes of the teacher's weights (before fine-tuning too), or its kind and name if it does not run here."""
    if not can_load_in_process(teacher):
        return [teacher.kind, teacher.model]
    measured = [labelling_files(teacher)]
    if teacher.finetune is not None and teacher.finetune.config is None:
        measured.append(find_model(teacher.model, teacher.revision))
    return [files.content_sha256 for files in measured]


class MeasuredReport(ComparedModels, Protocol):
    """A report with the facts of its measurement."""

    @property
    def key(self) -> str:
        """Hash of the dataset, students and settings behind the figures."""

    @property
    def created_at(self) -> str:
        """Time of the measurement, ISO 8601, UTC."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software, and the machine."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the figures were measured and how to read them."""


Found = TypeVar("Found", bound=MeasuredReport)


def stored_report(kind: TypeAdapter[Found], files: ReportFiles, key: str) -> Found | None:
    """Return the stored report if it is complete and has this `key`, else None.

    Raises:
        UsageError: a file with a report's name was not written by Stillhouse; it is not overwritten.
    """
    files.refuse_foreign_files()
    if not all(file.is_file() for file in (files.markdown, files.html, files.json)):
        return None
    try:
        report = kind.validate_json(files.json.read_bytes())
    except ValidationError:
        return None
    return report if report.key == key else None


def figures_of(report: MeasuredReport, table: Sequence[Sequence[str]], own: str | None = None) -> Figures:
    """Return a report's figures for a student's model card; `own` is the student's name in the table's first column."""
    return Figures(
        key=report.key,
        created_at=report.created_at,
        machine=report.versions["machine"],
        table=tuple(tuple(row) for row in table),
        answers=tuple(tuple(row) for row in answer_quality_table(report)),
        notes=report.notes,
        warnings={row.role: warning for row in report.models if (warning := warning_of(report, row))},
        own=own,
    )
