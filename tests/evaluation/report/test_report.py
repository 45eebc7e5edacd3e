"""The report in its three forms: the same figures, cautious words, nothing from outside, nothing unescaped."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from stillhouse.evaluation.report import plots
from stillhouse.evaluation.report.report import ReportFiles, as_json, html, markdown, write_report
from stillhouse.evaluation.report.tables import comparison_table, differences_table
from stillhouse.evaluation.report.verdict import findings
from stillhouse.evaluation.results import Difference, Interval, MetricColumn, ModelRow, Overlap, Report
from tests.dataset.chromium import open_page
from tests.evaluation.reports import (
    BROKEN,
    OVERLAPPING,
    QUANTISED,
    SEPARATE,
    TEXT_ONLY,
    plots_in,
    report,
    row,
    texts,
    with_copy,
)


def test_the_verdict_says_what_the_intervals_allow() -> None:
    words = findings(SEPARATE)
    assert "47% of the teacher's parameters" in words
    assert "2.6 times as many tokens per second" in words
    assert "Its KL to the teacher is 1.90 nats per token" in words
    assert "The untrained student, at 12.40, is clearly farther away." in words
    assert "The black-box student, at 2.80, is clearly farther away." in words


def test_overlapping_intervals_are_not_called_a_difference() -> None:
    assert "It is not distinguishable from the black-box student, at 2.10" in findings(OVERLAPPING)


def test_the_int8_copy_is_no_student_of_its_own() -> None:
    assert QUANTISED.student == SEPARATE.student
    assert findings(QUANTISED) == (
        f"{findings(SEPARATE)} The student's int8 copy takes 50% of its disk space and writes 0.5 times as many "
        "tokens per second; its KL to the teacher is 1.95 nats per token."
    )
    assert findings(with_copy(TEXT_ONLY, None)).endswith("writes 0.5 times as many tokens per second.")


def test_the_int8_copy_has_a_row_a_mark_and_a_colour_of_its_own() -> None:
    headers, *rows = comparison_table(QUANTISED)
    assert rows[-1][0] == "white-box student, int8"
    assert rows[-1][headers.index("KL/token")] == "1.95 [1.85, 2.05]"
    assert rows[-1][headers.index("tokens/s")] == "26.0 [23.0, 29.0]"
    page = html(QUANTISED)
    assert ".who.m4 { color: var(--m4); }" in page
    marks = re.findall(r'<use [^>]*style="fill: var\(--(m\d)\)', page)
    assert marks.count("m4") == marks.count("m3") - 1 == 4  # with two ends of an interval; m3 has one of its losses too
    student = next(line for line in page.split("<tr") if line.startswith(" class=student"))
    assert "white-box student</span>" in student
    assert page.count("<tr class=student") == 1
    assert "white-box student, int8" in markdown(QUANTISED)


def test_a_student_that_is_worse_is_called_so() -> None:
    assert "at 2.80, is clearly nearer" in findings(report(Interval(4.0, 3.9, 4.1), Interval(2.8, 2.6, 3.0)))


def test_a_teacher_of_text_alone() -> None:
    assert "the KL cannot be measured" in findings(TEXT_ONLY)
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
    assert not re.search(r"""(src|href|url|@import)\s*[=(](?!"?#)""", page)  # "#...": in the page itself
    assert "http" not in page.replace("http-equiv", "")


def test_html_shows_every_model_and_every_answer() -> None:
    page = html(SEPARATE)
    for one in SEPARATE.models:
        assert page.count(one.role) >= 2
    assert page.count("<svg") == 3
    assert "(empty)" in page


@pytest.mark.parametrize("near", [(), (("a b", "a c", 0.85),)])
def test_overlapping_prompts_are_listed(near: tuple[tuple[str, str, float], ...]) -> None:
    found = dataclasses.replace(SEPARATE, overlap=Overlap(50, 200, ("the same one",) if near else (), near, 0.8))
    assert ("none of them is also a training prompt" in html(found)) == (not near)
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


EXACT = MetricColumn("exact match", lower_is_better=False, percent=True, digits=1)
ERRORS = MetricColumn("phoneme <error> rate", lower_is_better=True, percent=True, digits=1)
CHRF = MetricColumn("chrF", lower_is_better=False, percent=False, digits=1)


def of_the_task(one: Report, *against: tuple[float, float, float]) -> Report:
    """The same with three metrics; the differences of the first are given, from each row but the student's."""
    scores = {
        "exact match": Interval(0.5, 0.48, 0.52),
        ERRORS.name: Interval(0.2, 0.19, 0.21),
        "chrF": Interval(71, 70, 72),
    }
    return dataclasses.replace(
        one,
        metrics=(EXACT, ERRORS, CHRF),
        models=tuple(dataclasses.replace(row, scores=scores, reference_score=None) for row in one.models),
        differences=tuple(
            Difference(
                row.role,
                {
                    "exact match": Interval(*first),
                    ERRORS.name: Interval(-0.01, -0.02, -0.004),
                    "chrF": Interval(-2, -3, -1),
                },
            )
            for row, first in zip([row for row in one.models if row is not one.student], against, strict=True)
        ),
        kept={"exact match": Interval(0.98, 0.965, 0.99)},
    )


TASK = of_the_task(SEPARATE, (-0.01, -0.018, -0.002), (0.5, 0.48, 0.52), (0.003, -0.004, 0.009))


def test_metrics_have_columns_beside_the_size() -> None:
    headers, *rows = comparison_table(TASK)
    assert headers[:6] == ["model", "parameters", "MB", "exact match", ERRORS.name, "chrF"]
    assert "reference F1" not in headers
    assert rows[1][3:6] == ["50.0 % [48.0, 52.0]", "20.0 % [19.0, 21.0]", "71.0 [70.0, 72.0]"]
    assert {len(line) for line in rows} == {len(headers)}


def test_differences_from_the_student_are_judged() -> None:
    headers, *rows = differences_table(TASK)
    assert headers == ["student minus", "exact match", ERRORS.name, "chrF"]
    assert [line[0] for line in rows] == ["teacher", "untrained student", "black-box student"]
    assert [line[1] for line in rows] == [
        "−1.0 [−1.8, −0.2] worse", "+50.0 [+48.0, +52.0] better", "+0.3 [−0.4, +0.9] not distinguishable"
    ]  # fmt: skip
    assert rows[0][2:] == ["−1.0 [−2.0, −0.4] better", "−2.0 [−3.0, −1.0] worse"]  # fewer errors are better
    assert "## Differences from the student" in markdown(TASK)
    assert "| teacher | −1.0 [−1.8, −0.2] worse |" in markdown(TASK)
    assert "Differences from the student" not in markdown(SEPARATE)


def test_the_verdict_goes_by_the_first_metric() -> None:
    words = findings(TASK)
    assert (
        "The exact match of the white-box student is 50.0 %, worse than the teacher's 50.0 %: it keeps 98.0% of it, "
        "between 96.5% and 99.0%." in words
    )
    assert "The untrained student, at 50.0 %, is clearly worse." in words
    assert "It is not distinguishable from the black-box student, at 50.0 %." in words
    assert "Its KL to the teacher is 1.90 nats per token." in words
    assert "farther away" not in words
    worse = of_the_task(SEPARATE, (0.01, -0.01, 0.02), (-0.2, -0.3, -0.1), (0, -0.1, 0.1))
    assert "not distinguishable from the teacher's 50.0 %" in findings(worse)
    assert "The untrained student, at 50.0 %, is clearly better." in findings(worse)


def test_the_page_shows_size_against_the_first_two_metrics() -> None:
    page = html(TASK)
    assert page.count("<svg") == 5  # the first two metrics
    assert "Parameters against exact match: teacher 50.0, 134.50 million parameters;" in page
    assert "+50.0" in page
    assert "<error>" not in page
    assert "The task" not in html(SEPARATE)


def test_many_models_have_room_marks_and_colours() -> None:
    rows = tuple(
        dataclasses.replace(
            row(f"student {number}", 1_000_000, Interval(1, 0.9, 1.1)), scores={"exact match": Interval(0.5, 0.4, 0.6)}
        )
        for number in range(12)
    )
    plot = plots.size_and_score(rows, EXACT)
    heights = sorted(y for text, y in texts(plots_in(plot)[0]) if text.startswith("student"))
    assert len(heights) == 12
    assert min(np.diff(heights)) >= 18
    assert len({*re.findall(r"<use [^>]*(var\(--m\d\))", plot)}) == 9
    assert plots.size_and_distance(rows)


def test_an_axis_far_from_nothing_does_not_begin_there() -> None:
    rows = [
        dataclasses.replace(row(name, size, None), scores={"exact match": Interval(mean, mean - 0.01, mean + 0.01)})
        for name, size, mean in (("a", 2_000_000, 0.67), ("b", 500_000, 0.65))
    ]
    ticks = [
        float(text) for text, _ in texts(plots_in(plots.size_and_score(rows, EXACT))[0]) if re.fullmatch(r"\d\d", text)
    ]
    assert min(ticks) == 64
    assert max(ticks) >= 68


def test_a_teacher_that_does_not_run_here_has_the_scores_of_its_labels_alone() -> None:
    labels = ModelRow("teacher", "some-api-model", scores=TASK.models[0].scores)
    far = dataclasses.replace(TASK, models=(labels, *TASK.models[1:]))
    headers, first, *_ = comparison_table(far)
    assert [
        cell
        for header, cell in zip(headers, first, strict=True)
        if header not in ("model", *(one.name for one in TASK.metrics))
    ] == ["–"] * 9
    assert "parameters" not in findings(far)
    assert "worse than the teacher's 50.0 %" in findings(far)
    page = html(far)
    assert "some-api-model" not in page
    assert "Parameters against exact match: untrained student" in page


def test_a_report_from_before_there_were_metrics_is_still_one() -> None:
    old = json.loads(json.dumps(as_json(SEPARATE)))
    for added in ("metrics", "differences", "kept"):
        del old[added]
    for model in old["models"]:
        del model["scores"], model["answer_quality"]
    assert TypeAdapter(Report).validate_python(old) == SEPARATE
    for new in (TASK, BROKEN):
        assert TypeAdapter(Report).validate_json(json.dumps(as_json(new))) == new


def test_an_untrained_model_does_not_press_the_others_together() -> None:
    rows = [
        dataclasses.replace(row(name, 500_000, None), scores={"exact match": Interval(mean, mean - 0.01, mean + 0.01)})
        for name, mean in (("teacher", 0.67), ("untrained", 0.0), ("student", 0.65))
    ]
    plot = plots.size_and_score(rows, EXACT)
    shown = [text for text, _ in texts(plots_in(plot)[0])]
    assert {"untrained 0.0 ↓", "student 65.0", "64"} <= {*shown}
    assert "0" not in shown


@pytest.mark.parametrize("width", [390, 1280])
def test_no_table_is_wider_than_the_page(width: int, tmp_path: Path) -> None:
    long = dataclasses.replace(EXACT, name="share of summaries that nobody would have written otherwise")
    many = dataclasses.replace(
        TASK,
        metrics=(*TASK.metrics, long),
        models=tuple(
            dataclasses.replace(row, scores=row.scores | {long.name: Interval(1, 1, 1)}) for row in TASK.models
        ),
        differences=tuple(
            dataclasses.replace(one, scores=one.scores | {long.name: Interval(0, -0.5, 0.5)})
            for one in TASK.differences
        ),
    )
    files = write_report(many, tmp_path)
    with open_page(files.html, width=width, touch=width < 500) as page:
        inside = page.value("document.documentElement.clientWidth")
        assert page.value("document.documentElement.scrollWidth") <= inside <= width
        assert page.value("document.querySelectorAll('table.comparison').length") == 2
        assert page.errors == []
        assert all(asked.startswith("file:") for asked in page.requests)
