"""Reports without any model behind them, for the tests of how they are drawn."""

import dataclasses
import re
from xml.etree import ElementTree

from stillhouse.evaluation.results import (
    AnswerQuality,
    Answers,
    Curve,
    DifferenceFromTeacher,
    Interval,
    LabelSummary,
    ModelRow,
    Overlap,
    Report,
)


def row(role: str, parameters: int, kl: Interval | None, speed: float = 20.0) -> ModelRow:
    return ModelRow(
        role, f"data/{role}", parameters, parameters / 5e5, 900.0, Interval(speed, speed - 3, speed + 3), 800.0, 1100.0, kl,
        None if kl is None else Interval(0.4, 0.35, 0.45), Interval(12.0, 10.0, 14.5), Interval(0.31, 0.28, 0.34),
    )  # fmt: skip


def report(student: Interval | None, black_box: Interval | None) -> Report:
    models = (
        row("teacher", 134_500_000, None if student is None else Interval(0, 0, 0)),
        row("untrained student", 63_700_000, None if student is None else Interval(12.4, 12.0, 12.8), 50.0),
        row("black-box student", 63_700_000, black_box, 50.0),
        row("white-box student", 63_700_000, student, 52.0),
    )
    return Report(
        recipe="quick",
        created_at="2026-01-01T00:00:00+00:00",
        versions={"stillhouse": "0", "machine": "x"},
        labels=LabelSummary("quick/v001", 200, 50, {"finish-reason": 3}, 1000, 2000, None, "top-k, k=32"),
        overlap=Overlap(50, 200, (), (), 0.8),
        models=models,
        answers=(Answers("Say <script>alert(1)</script>", "A | B", ("one", "<b>two</b>", "", "four\nlines")),),
        curves=(Curve("white-box student", (1, 2), (9.0, 4.0), (2,), (5.0,)),),
        recipe_yaml="name: quick\n",
        notes=("Read <this>.",),
    )


def plots_in(page: str) -> list[ElementTree.Element]:
    """The plots of a page."""
    return [ElementTree.fromstring(one) for one in re.findall('<svg class="plot".*?</svg>', page, re.DOTALL)]


def texts(plot: ElementTree.Element) -> list[tuple[str, float]]:
    """Each text of a plot, and its height."""
    return [(one.text or "", float(one.get("y") or "nan")) for one in plot.iter("text")]


SEPARATE = report(Interval(1.9, 1.8, 2.0), Interval(2.8, 2.6, 3.0))
OVERLAPPING = report(Interval(1.9, 1.6, 2.2), Interval(2.1, 1.9, 2.3))
TEXT_ONLY = report(None, None)


def with_copy(one: Report, kl: Interval | None) -> Report:
    """The same with the student's int8 copy in the last row."""
    copy = dataclasses.replace(
        row("white-box student, int8", 63_700_000, kl, 26.0), megabytes=one.student.megabytes / 2, is_int8=True
    )
    answers = tuple(dataclasses.replace(each, answers=(*each.answers, "five")) for each in one.answers)
    return dataclasses.replace(one, models=(*one.models, copy), answers=answers)


QUANTISED = with_copy(SEPARATE, Interval(1.95, 1.85, 2.05))


def near(mean: float, wide: float = 0.03) -> Interval:
    return Interval(mean, mean - wide, mean + wide)


NONE = Interval(0, 0, 0)


def looks(
    repeats: float = 0, cut: float = 0, empty: float = 0, copied: float = 0, length: float = 1, wide: float = 0.03
) -> AnswerQuality:
    """What a model's answers look like whose teacher has 2 % of everything; `wide` is half of each interval."""
    shares = [near(share, wide) for share in (repeats, cut, empty, copied)]
    less = DifferenceFromTeacher(
        *(near(share - 0.02, wide) for share in (repeats, cut, empty, copied)),
        length_ratio=near(length, length * wide),
    )
    return AnswerQuality(*shares, tokens=near(20 * length, 1), from_teacher=less)


def with_looks(one: Report, student: AnswerQuality, copy: AnswerQuality | None = None) -> Report:
    teacher = AnswerQuality(*[Interval(0.02, 0.0, 0.05)] * 4, tokens=near(20, 2))
    by_role = {"teacher": teacher, "white-box student": student, "white-box student, int8": copy}
    rows = (
        dataclasses.replace(row, answer_quality=by_role.get(row.role, looks(0.9, 1, 0, 0, 3))) for row in one.models
    )
    return dataclasses.replace(one, models=tuple(rows))


SOUND = with_looks(SEPARATE, looks(0.03, 0.04, 0.02, 0.02, 1.2))
BROKEN = with_looks(SEPARATE, looks(0.38, 0.413, 0.02, 0.02, 2.3))
