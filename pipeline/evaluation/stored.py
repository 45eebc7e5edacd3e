"""A report that lies there already, and its figures in the students' model cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.evaluation.report import ReportFiles
from pipeline.evaluation.tables import Compared, answer_quality_table
from pipeline.evaluation.warnings import warning_of
from pipeline.student.card import Figures


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
