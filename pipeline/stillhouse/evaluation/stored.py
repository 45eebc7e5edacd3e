"""A report that lies there already: what it stands for, and its figures in the students' model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.report.report import ReportFiles
from stillhouse.evaluation.report.tables import Compared, answer_quality_table
from stillhouse.evaluation.report.warnings import warning_of
from stillhouse.models.files import find_model, labelling_files, runs_here
from stillhouse.plugins import METRICS, code_of
from stillhouse.recipe.load import Recipe, TeacherSettings
from stillhouse.records import content_hash
from stillhouse.student.finished.card import Figures

FIGURES = 3  # goes up when other things are measured: older reports are then made again


def report_key(recipe: Recipe, dataset: Dataset, students: object, settings: Mapping[str, Any]) -> str:
    """Names all that a report's figures come from.

    Args:
        recipe: whose models are measured.
        dataset: whose held-out rows they are measured on.
        students: names the students.
        settings: what of `evaluate` shapes the figures.
    """
    return content_hash(
        {
            "students": students,
            "dataset": [dataset.manifest.plan_sha256, [file.sha256 for file in dataset.manifest.files]],
            "settings": settings,
            "metrics": [code_of(METRICS, one.kind) for one in recipe.evaluate.metrics],
            "teacher": _teacher(recipe.teacher),
            "answers": [recipe.label.mode, recipe.label.sampling.max_tokens],
            "figures": FIGURES,
        }
    )


def _teacher(teacher: TeacherSettings) -> list[str]:
    """The teacher as it is measured: its weights, and those before it was fine-tuned; or the name of its labels' line."""
    if not runs_here(teacher):
        return [teacher.kind, teacher.model]
    measured = [labelling_files(teacher)]
    if teacher.finetune is not None and teacher.finetune.config is None:
        measured.append(find_model(teacher.model, teacher.revision))
    return [files.content_sha256 for files in measured]


class Measured(Compared, Protocol):
    """What every report says of its measurement."""

    @property
    def key(self) -> str:
        """Names the dataset, the students and the settings that the figures stand for."""

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC."""

    @property
    def versions(self) -> dict[str, str]:
        """Software, and the machine."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know to believe the figures."""


Found = TypeVar("Found", bound=Measured)


def stored_report(kind: TypeAdapter[Found], files: ReportFiles, key: str) -> Found | None:
    """The report that lies there, if it stands for `key` and is whole.

    Raises:
        UsageError: a file that is no report's has the name of one; it is not replaced.
    """
    files.refuse_others()
    if not all(file.is_file() for file in (files.markdown, files.html, files.json)):
        return None
    try:
        report = kind.validate_json(files.json.read_bytes())
    except ValidationError:
        return None
    return report if report.key == key else None


def figures_of(report: Measured, table: Sequence[Sequence[str]], own: str | None = None) -> Figures:
    """A report's figures as a student's card shows them; `own` is the student's name in the table's first column."""
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
