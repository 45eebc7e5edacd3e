"""Data classes of a sweep's report: the students of one dataset, and the choice among them.

`evaluate.py` fills them; `report.py` renders them.
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
    kept: dict[str, Interval]  # its score / the teacher's, by metric, for metrics where higher is better


@dataclass(frozen=True)
class Choice:
    """The chosen students, by their labels."""

    keep: float  # required share of the teacher's first metric
    smallest: str | None  # smallest student that keeps this share; None: none does, or the shares are unknown
    nearest: str | None  # student without a warning that keeps the largest share; None: the shares are unknown
    # Pareto front of students without a warning: no other is at most as large and strictly better, or strictly
    # smaller and at least as good
    front: tuple[str, ...]


@dataclass(frozen=True)
class SweepReport:
    """All data that the report of a sweep shows."""

    recipe: str
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]  # stillhouse, torch, transformers, python, and the machine
    labels: LabelSummary
    overlap: Overlap
    teacher: ModelRow | None  # None: it does not run on this machine, and the labels are the references
    students: tuple[SweptStudent, ...]
    choice: Choice
    answers: tuple[Answers, ...]  # in the order of `models`
    recipe_yaml: str  # the resolved recipe
    notes: tuple[str, ...]  # how the figures were measured and how to read them
    key: str  # hash of the dataset, students and settings behind the figures
    metrics: tuple[MetricColumn, ...] = ()  # of the task, the most important first

    @property
    def models(self) -> tuple[ModelRow, ...]:
        """The rows of the table: the teacher, and the students with their quantised copies."""
        return (*([self.teacher] if self.teacher else []), *(one.row for one in self.students))

    @property
    def lead(self) -> MetricColumn | None:
        """The first metric of the task."""
        return self.metrics[0] if self.metrics else None

    @property
    def student(self) -> ModelRow | None:
        """The smallest student that keeps enough, shown in bold in the table; None: no student does."""
        return next((row for row in self.models if row.role == self.choice.smallest), None)

    def named(self, label: str) -> SweptStudent:
        """Return the student with this label."""
        return next(one for one in self.students if one.row.role == label)
