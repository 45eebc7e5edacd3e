"""The nouns of a sweep's report: the students of one dataset, and which of them to take.

`sweep.py` fills them, `sweep_report.py` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.evaluation.results import Answers, Interval, LabelSummary, MetricColumn, ModelRow, Overlap


@dataclass(frozen=True)
class SweptStudent:
    """One student of a sweep, or its quantised copy; `row.role` is its label, such as "16 layers"."""

    row: ModelRow
    settings: dict[str, Any]  # dotted path -> value
    kept: dict[str, Interval]  # its score / the teacher's, by metric, where higher is better


@dataclass(frozen=True)
class Choice:
    """Which students are worth taking, by their labels."""

    keep: float  # share of the teacher's first metric that is asked for
    smallest: str | None  # the smallest student that keeps it; None where none does, or there is no telling
    nearest: str | None  # the student without a warning that keeps the largest share; None where there is no telling
    # students without a warning to which no other is preferable: none is as small and better, or smaller and as good
    front: tuple[str, ...]


@dataclass(frozen=True)
class SweepReport:
    """Everything that the report of a sweep shows."""

    recipe: str
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]  # stillhouse, torch, transformers, python, and the machine
    labels: LabelSummary
    overlap: Overlap
    teacher: ModelRow | None  # None where it does not run here and the labels are the references
    students: tuple[SweptStudent, ...]
    choice: Choice
    answers: tuple[Answers, ...]  # in the order of `models`
    recipe_yaml: str  # the resolved recipe
    notes: tuple[str, ...]  # what a reader must know to believe the figures
    key: str  # names the dataset, the students and the settings that the figures stand for
    metrics: tuple[MetricColumn, ...] = ()  # of the task, the most important first

    @property
    def models(self) -> tuple[ModelRow, ...]:
        """The lines of the table: the teacher, and the students with their quantised copies."""
        return (*([self.teacher] if self.teacher else []), *(one.row for one in self.students))

    @property
    def lead(self) -> MetricColumn | None:
        """The first metric of the task."""
        return self.metrics[0] if self.metrics else None

    @property
    def student(self) -> ModelRow | None:
        """The one that the table shows in bold."""
        return next((row for row in self.models if row.role == self.choice.smallest), None)

    def named(self, label: str) -> SweptStudent:
        """The student of this label."""
        return next(one for one in self.students if one.row.role == label)
