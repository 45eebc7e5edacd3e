"""A sweep's report: which student it names and how, the front by brute force, and the page on a desk and on a phone."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stillhouse.evaluation.report.answer_warnings import fault_of, warning_of
from stillhouse.evaluation.report.plots import FRONT
from stillhouse.evaluation.report.report import ANSWER_QUALITY_TITLE, ReportFiles
from stillhouse.evaluation.results import (
    AnswerQuality,
    Answers,
    Interval,
    LabelSummary,
    MetricColumn,
    ModelRow,
    Overlap,
)
from stillhouse.evaluation.sweep.choice import choose, pareto_front
from stillhouse.evaluation.sweep.report import sweep_html, sweep_markdown, sweep_table, write_sweep_report
from stillhouse.evaluation.sweep.results import SweepReport, SweptStudent
from stillhouse.evaluation.sweep.verdict import sweep_findings, sweep_warnings
from tests.dataset.chromium import open_page
from tests.evaluation.reports import looks, plots_in, texts

EXACT = MetricColumn("exact match", lower_is_better=False, percent=True, digits=1)
ERRORS = MetricColumn("error rate", lower_is_better=True, percent=True, digits=1)


def around(value: float, width: float = 0.02) -> Interval:
    return Interval(value, value - width, value + width)


def row(role: str, parameters: int, kl: float, scores: dict[str, Interval], **more: Any) -> ModelRow:
    return ModelRow(
        role, f"data/students/{role}", parameters, parameters / 5e5, 900.0, around(40, 3), 800.0, 1100.0,
        around(kl) if kl else Interval(0, 0, 0), around(0.6), around(9.0), scores=scores, **more,
    )  # fmt: skip


def report(
    *metrics: MetricColumn, keep: float = 0.97, kept: tuple[float, ...] = (0.99, 0.98, 0.96, 0.7)
) -> SweepReport:
    """Four sizes of one teacher; the third is larger and worse than the second."""
    sizes, kls = (110_000_000, 80_000_000, 81_000_000, 50_000_000), (0.6, 0.9, 1.1, 2.4)
    labels = ("24 layers", "16 layers", "layers [0,1,3,5]", "8 layers")
    students = tuple(
        SweptStudent(
            row(label, size, kl, {one.name: around(0.6 * share) for one in metrics}),
            {"student.init.layers": number},
            {one.name: around(share, 0.015) for one in metrics if not one.lower_is_better},
        )
        for number, (label, size, kl, share) in enumerate(zip(labels, sizes, kls, kept, strict=True))
    )
    return SweepReport(
        recipe="quick",
        created_at="2026-01-01T00:00:00+00:00",
        versions={"stillhouse": "0", "machine": "x"},
        labels=LabelSummary("quick/v001", 200, 50, {}, 1000, 2000, None, "top-k, k=32"),
        overlap=Overlap(50, 200, (), (), 0.8),
        teacher=row("teacher", 134_500_000, 0, {one.name: around(0.6) for one in metrics}),
        students=students,
        choice=choose(students, metrics, keep),
        answers=(Answers("Say <script>alert(1)</script>", "A | B", ("t", "one", "<b>two</b>", "", "four")),),
        recipe_yaml="name: quick\n",
        notes=("Read <this>.",),
        key="k",
        metrics=metrics,
    )


def with_looks(one: SweepReport, **faulty: AnswerQuality) -> SweepReport:
    """The same, where the students of these places ("s0", "s1", ...) have these answers and all others sound ones."""
    students = tuple(
        dataclasses.replace(
            each,
            row=dataclasses.replace(each.row, answer_quality=faulty.get(f"s{place}", looks(0.02, 0.02, 0.02, 0.02))),
        )
        for place, each in enumerate(one.students)
    )
    return dataclasses.replace(one, students=students, choice=choose(students, one.metrics, one.choice.keep))


BROKEN, RUNS_ON, COPIES = looks(repeats=0.38, copied=0.5), looks(length=1.8), looks(copied=0.3)


POINTS = st.lists(st.tuples(st.integers(1, 8), st.integers(-4, 4)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_point_is_preferable_to(points: list[tuple[float, float]]) -> None:
    def preferable(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return (one[0] <= other[0] and one[1] > other[1]) or (one[0] < other[0] and one[1] >= other[1])

    expected = {place for place, point in enumerate(points) if not any(preferable(other, point) for other in points)}
    assert pareto_front(points) == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.5, 1.1)), min_size=1, max_size=6), st.floats(0.6, 1))
def test_the_smallest_is_the_smallest_that_keeps_enough(points: list[tuple[int, float]], keep: float) -> None:
    students = [
        SweptStudent(
            row(f"{place} things", size, 1.0, {"exact match": around(share)}), {}, {"exact match": around(share)}
        )
        for place, (size, share) in enumerate(points)
    ]
    found = choose(students, [EXACT], keep)
    enough = [size for size, share in points if share >= keep]
    assert (found.smallest is None) == (not enough)
    if found.smallest is not None:
        size, share = points[int(found.smallest.split()[0])]
        assert (size, share >= keep) == (min(enough), True)
    assert found.nearest is not None
    assert points[int(found.nearest.split()[0])][1] == max(share for _, share in points)


def test_the_first_line_names_the_smallest_that_keeps_enough() -> None:
    one = report(EXACT, ERRORS)
    words = sweep_findings(one)
    assert words.startswith(
        "The smallest student that keeps 97% of the teacher's exact match is 16 layers, with 80.0 million parameters (59% "
        "of the teacher's): it keeps 98.0%, between 96.5% and 99.5%. Its interval extends below 97%"
    )
    assert words.endswith("On the Pareto front of size and quality: 24 layers, 16 layers, 8 layers.")
    assert one.student is not None
    assert one.student.role == "16 layers"
    assert sweep_markdown(one).splitlines()[2] == words
    assert "reaches below" not in sweep_findings(report(EXACT, keep=0.9))


def test_where_none_keeps_enough_the_nearest_is_named() -> None:
    words = sweep_findings(report(EXACT, kept=(0.9, 0.95, 0.8, 0.7)))
    assert words.startswith(
        "No student keeps 97% of the teacher's exact match. The closest is 16 layers, with 80.0 million"
    )
    assert "it keeps 95.0%, between 93.5% and 96.5%" in words


def test_without_a_metric_that_can_be_kept_it_says_how_to_have_one() -> None:
    words = sweep_findings(report())
    assert "No student is recommended, because the recipe has no task metric. With evaluate.metrics" in words
    assert "The closest to the teacher is 24 layers, at 0.60 nats per token." in words
    assert "On the Pareto front of size and quality: 24 layers, 16 layers, 8 layers." in words
    lower = report(ERRORS, EXACT)
    words = sweep_findings(lower)
    assert "because a lower error rate is better" in words
    assert "If a metric of which higher is better is first in evaluate.metrics" in words
    assert "The best is 8 layers, at 42.0 %." in words
    assert lower.choice.front == ("8 layers",)
    assert "kept" not in sweep_table(lower)[0]


def test_a_teacher_near_0_and_one_that_is_not_here() -> None:
    plain = report(EXACT)
    students = tuple(dataclasses.replace(one, kept={}) for one in plain.students)
    unknown = dataclasses.replace(plain, students=students, choice=choose(students, [EXACT], 0.97))
    assert (
        "cannot be computed: the teacher's score, 60.0 %, is too close to 0. The best is 24 layers"
        in sweep_findings(unknown)
    )
    away = dataclasses.replace(unknown, teacher=None)
    assert "cannot be computed: the teacher does not run on this machine" in sweep_findings(away)
    assert [cells[0] for cells in sweep_table(away)[1:]] == [one.row.role for one in students]


def test_a_broken_student_is_never_named_and_the_first_words_say_so() -> None:
    sound = with_looks(report(EXACT))
    assert (sweep_warnings(sound), sound.choice) == ([], report(EXACT).choice)
    one = with_looks(report(EXACT), s1=BROKEN)  # 16 layers, which keeps enough
    assert (one.choice.smallest, one.choice.nearest) == ("24 layers", "24 layers")
    assert one.choice.front == ("24 layers", "layers [0,1,3,5]", "8 layers")
    said = (
        "16 layers is broken: 38 % of its answers repeat themselves (its teacher: 2 %). 16 layers copies: 50 % of its "
        "answers are, word for word, training answers to other prompts (its teacher: 2 %)."
    )
    assert sweep_warnings(one) == [said]
    assert sweep_findings(one).startswith(
        "The smallest student that keeps 97% of the teacher's exact match is 24 layers"
    )
    assert sweep_markdown(one, page="[here](x)").splitlines()[2:5] == [
        f"**{said}** {sweep_findings(one)}",
        "",
        "[here](x)",
    ]


def test_the_nearest_and_the_best_are_sound() -> None:
    one = with_looks(report(EXACT, kept=(0.9, 0.95, 0.8, 0.7)), s1=RUNS_ON)
    assert sweep_findings(one).startswith(
        "No student without a warning keeps 97% of the teacher's exact match. The closest is 24 layers"
    )
    by_distance = with_looks(report(), s0=COPIES)
    assert "The closest to the teacher is 16 layers, at 0.90 nats per token." in sweep_findings(by_distance)
    lower = with_looks(report(ERRORS), s3=BROKEN)
    assert "The best is layers [0,1,3,5], at 57.6 %." in sweep_findings(lower)


def rings(page: str) -> tuple[int, int]:
    """How many rings the plot of a page has around marks, and how many dashed lines."""
    groups = (group for plot in plots_in(page) for group in plot.iter("g"))
    (front,) = (group for group in groups if group.findtext("title") == FRONT)
    return len([*front.iter("use")]), sum("dasharray" in one.get("style", "") for one in front.findall("path"))


@pytest.mark.parametrize("metrics", [(EXACT,), (ERRORS,), ()])
def test_where_all_are_broken_none_is_named(metrics: tuple[MetricColumn, ...]) -> None:
    one = with_looks(report(*metrics), s0=BROKEN, s1=RUNS_ON, s2=COPIES, s3=BROKEN)
    assert (one.choice.smallest, one.choice.nearest, one.choice.front) == (None, None, ())
    assert sweep_findings(one) == "No student can be recommended: each of them has a warning."
    assert len(sweep_warnings(one)) == 4
    assert '<circle class="front"' not in sweep_html(one)


@pytest.mark.parametrize(
    ("quality", "word"),
    [
        (BROKEN, "broken"),
        (looks(empty=0.1, length=2), "broken"),
        (RUNS_ON, "runs on"),
        (looks(length=1.8, copied=0.3), "runs on"),
        (COPIES, "copies"),
        (looks(), ""),
        (looks(repeats=0.12, wide=0.11), ""),
        (None, ""),
    ],
)
def test_a_fault_has_a_word_in_the_table_and_in_the_plot(quality: AnswerQuality | None, word: str) -> None:
    plain = with_looks(report(EXACT))
    first = dataclasses.replace(
        plain.students[0], row=dataclasses.replace(plain.students[0].row, answer_quality=quality)
    )
    students = (first, *plain.students[1:])
    one = dataclasses.replace(plain, students=students, choice=choose(students, [EXACT], 0.97))
    assert fault_of(first.row) == word
    assert bool(warning_of(one, first.row)) == bool(word)
    headers, *rows = sweep_table(one)
    assert rows[1][headers.index("front")] == (word or "yes")
    page = sweep_html(one)
    assert (f"24 layers 59.4, {word}, 110.00 million parameters" in page) == bool(word)
    assert not word or f">{word}</text>" in page  # the label's second line
    assert ("students with a warning are not on it" in page) == bool(word)
    assert rings(page)[0] == len(one.choice.front) == (2 if word else 3)


def test_a_broken_copy_is_told_where_its_student_is_sound() -> None:
    plain = with_looks(report(EXACT), s2=BROKEN)

    def copy_of(place: int) -> SweptStudent:
        row = plain.students[place].row
        return SweptStudent(
            dataclasses.replace(row, role=f"{row.role}, int8", is_int8=True, answer_quality=looks(empty=0.2)), {}, {}
        )

    students = (*plain.students[:2], copy_of(1), plain.students[2], copy_of(2), plain.students[3])
    one = dataclasses.replace(plain, students=students)
    assert sweep_warnings(one) == [
        "The int8 copy of 16 layers is broken: 20 % of its answers are empty (its teacher: 2 %).",
        sweep_warnings(plain)[0],
    ]
    assert choose(students, [EXACT], 0.97).smallest == "16 layers"


def test_what_the_answers_look_like_has_its_table() -> None:
    one = with_looks(report(EXACT), s1=BROKEN)
    text = sweep_markdown(one)
    assert f"## {ANSWER_QUALITY_TITLE}" in text
    assert "| 16 layers | 38.0 % [35.0, 41.0] |" in text
    page = sweep_html(one)
    assert f"<h2>{ANSWER_QUALITY_TITLE}</h2>" in page
    assert page.count("38.0 %") == 1
    assert ANSWER_QUALITY_TITLE not in sweep_html(report(EXACT)) + sweep_markdown(report(EXACT))


def test_quantised_copies_have_a_line_and_are_not_chosen_among() -> None:
    plain = report(EXACT)
    copy = dataclasses.replace(plain.students[3].row, role="8 layers, int8", is_int8=True)
    students = (*plain.students, SweptStudent(copy, {}, {"exact match": around(1.0)}))
    assert choose(students, [EXACT], 0.97) == plain.choice
    table = sweep_table(dataclasses.replace(plain, students=students))
    assert table[-1][0] == "8 layers, int8"


def test_the_table_has_what_is_kept_and_the_front() -> None:
    headers, *rows = sweep_table(report(EXACT, ERRORS))
    assert headers[:7] == ["model", "parameters", "MB", "exact match", "error rate", "kept", "front"]
    assert [cells[headers.index("kept")] for cells in rows[:2]] == ["–", "99.0 % [97.5, 100.5]"]
    assert [cells[headers.index("front")] for cells in rows] == ["–", "yes", "yes", "–", "yes"]


def test_it_is_written_and_read_again(tmp_path: Path) -> None:
    one = report(EXACT)
    write_sweep_report(one, tmp_path)
    files = ReportFiles.in_folder(tmp_path, "sweep")
    assert TypeAdapter(SweepReport).validate_json(files.json.read_bytes()) == one
    assert json.loads(files.json.read_text())["choice"]["smallest"] == "16 layers"


@pytest.mark.parametrize("metrics", [(EXACT,), (ERRORS,), ()])
def test_the_page_has_the_front_marked_by_shape_and_nothing_from_outside(metrics: tuple[MetricColumn, ...]) -> None:
    one = report(*metrics)
    page = sweep_html(one)
    assert "<script" not in page
    assert not re.search(r'(src|href)=(?!"#)', page)
    assert "Size against quality" in page
    assert rings(page) == (len(one.choice.front), 1)
    for label in ("teacher", "24 layers", "16 layers", "8 layers"):
        assert any(re.match(rf"{label} \d", text) for text, _ in texts(plots_in(page)[0]))
    assert page.count("<tr class=student") == (1 if metrics == (EXACT,) else 0)
    assert sweep_markdown(one).count("| prompt |") == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desk_and_a_phone(tmp_path: Path, width: int) -> None:
    one = with_looks(report(EXACT, ERRORS), s1=BROKEN, s2=RUNS_ON)
    (tmp_path / "sweep.html").write_text(sweep_html(one))
    with open_page(tmp_path / "sweep.html", width=width) as page:
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(
            "document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"
        )
        assert page.errors == []
