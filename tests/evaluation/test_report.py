"""The report in its three forms: the same figures, cautious words, nothing from outside, nothing unescaped."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from pipeline.evaluation.report import ReportFiles, as_json, html, markdown, write_report
from pipeline.evaluation.results import Answers, Curve, Interval, LabelSummary, ModelRow, Overlap, Report
from pipeline.evaluation.tables import comparison_table
from pipeline.evaluation.verdict import verdict


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


def test_the_verdict_says_what_the_intervals_allow() -> None:
    words = verdict(SEPARATE)
    assert "47% of the teacher's parameters" in words
    assert "2.6 times as many tokens a second" in words
    assert "stands 1.90 nats a token from the teacher" in words
    assert "The untrained student, at 12.40, is clearly farther away." in words
    assert "The black-box student, at 2.80, is clearly farther away." in words


def test_overlapping_intervals_are_not_called_a_difference() -> None:
    assert "From the black-box student, at 2.10, it is not distinguishable" in verdict(OVERLAPPING)


def test_the_int8_copy_is_no_student_of_its_own() -> None:
    assert QUANTISED.student == SEPARATE.student
    assert verdict(QUANTISED) == (
        f"{verdict(SEPARATE)} The student's int8 copy takes 50% of its space on disk, writes 0.5 times as many "
        "tokens a second, and stands 1.95 nats a token from the teacher."
    )
    assert verdict(with_copy(TEXT_ONLY, None)).endswith("writes 0.5 times as many tokens a second.")


def test_the_int8_copy_has_a_row_a_mark_and_a_colour_of_its_own() -> None:
    headers, *rows = comparison_table(QUANTISED)
    assert rows[-1][0] == "white-box student, int8"
    assert rows[-1][headers.index("KL/token")] == "1.95 [1.85, 2.05]"
    assert rows[-1][headers.index("tokens/s")] == "26.0 [23.0, 29.0]"
    page = html(QUANTISED)
    assert ".who.m4 { color: var(--m4); }" in page
    assert page.count('class="mark m4"') == 2  # of each plot
    student = next(line for line in page.split("<tr") if line.startswith(" class=student"))
    assert "white-box student</span>" in student
    assert page.count("<tr class=student") == 1
    assert "white-box student, int8" in markdown(QUANTISED)


def test_a_student_that_is_worse_is_called_so() -> None:
    assert "at 2.80, is clearly nearer" in verdict(report(Interval(4.0, 3.9, 4.1), Interval(2.8, 2.6, 3.0)))


def test_a_teacher_of_text_alone() -> None:
    assert "its distance cannot be told" in verdict(TEXT_ONLY)
    table = comparison_table(TEXT_ONLY)
    assert [line[table[0].index("KL/token")] for line in table[1:]] == ["–"] * 4
    assert "Distance to the teacher" not in html(TEXT_ONLY)


def test_the_table_has_a_cell_for_every_header() -> None:
    headers, *rows = comparison_table(SEPARATE)
    assert {len(line) for line in rows} == {len(headers)}
    assert rows[0][headers.index("KL/token")] == "0.00"
    assert rows[3][headers.index("KL/token")] == "1.90 [1.80, 2.00]"
    assert rows[3][headers.index("agreement")] == "40.0 % [35.0, 45.0]"
    unscored = dataclasses.replace(
        SEPARATE, models=tuple(dataclasses.replace(one, reference_score=None) for one in SEPARATE.models)
    )
    assert "reference F1" not in comparison_table(unscored)[0]


def test_markdown_keeps_its_tables_whole() -> None:
    text = markdown(SEPARATE)
    assert "A \\| B" in text
    assert "<script>" not in text
    tables = [line for line in text.splitlines() if line.startswith("| white-box student")]
    assert len(tables) == 2
    assert "four lines" in tables[1]


def test_html_escapes_everything_that_was_written_by_others() -> None:
    page = html(SEPARATE)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;two" in page
    assert "Read &lt;this&gt;." in page


def test_html_needs_no_network() -> None:
    page = html(SEPARATE)
    assert not re.search(r"""(src|href|url|@import)\s*[=(]""", page)
    assert "http" not in page.replace("http-equiv", "")


def test_html_shows_every_model_and_every_answer() -> None:
    page = html(SEPARATE)
    for one in SEPARATE.models:
        assert page.count(one.role) >= 2
    assert page.count("<svg") == 3
    assert "(nothing)" in page


@pytest.mark.parametrize("near", [(), (("a b", "a c", 0.85),)])
def test_overlapping_prompts_are_listed(near: tuple[tuple[str, str, float], ...]) -> None:
    found = dataclasses.replace(SEPARATE, overlap=Overlap(50, 200, ("the same one",) if near else (), near, 0.8))
    assert ("none of them is a training prompt" in html(found)) == (not near)
    assert ("the same one" in html(found)) == bool(near)


def test_json_holds_the_whole_report(tmp_path: Path) -> None:
    files = write_report(SEPARATE, tmp_path / "deep" / "folder")
    assert files == ReportFiles.in_folder(tmp_path / "deep" / "folder")
    assert json.loads(files.json.read_text()) == json.loads(json.dumps(as_json(SEPARATE)))
    assert files.html.read_text() == html(SEPARATE)
    assert sorted(file.name for file in files.html.parent.iterdir()) == ["report.html", "report.json", "report.md"]


def test_figures_out_of_all_bounds_are_still_drawn() -> None:
    wild = report(Interval(1e7, 1.0, 3e8), Interval(0.0, 0.0, 0.0))
    assert "1.0e7" in comparison_table(wild)[4][7]
    assert "nan" not in html(wild)
