"""What the report says first of a broken student, and the table of what answers look like."""

import dataclasses
from pathlib import Path

import pytest

from stillhouse.evaluation.report.answer_warnings import percent, warnings
from stillhouse.evaluation.report.report import html, markdown, write_report
from stillhouse.evaluation.report.tables import answer_quality_table
from stillhouse.evaluation.report.verdict import findings
from stillhouse.evaluation.results import AnswerQuality, DifferenceFromTeacher, Interval
from tests.dataset.chromium import open_page
from tests.evaluation.reports import BROKEN, NONE, QUANTISED, SEPARATE, looks, near, with_looks


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (looks(repeats=0.38), "This student is broken: 38 % of its answers repeat themselves (its teacher: 2 %)."),
        (looks(repeats=0.38, cut=0.413, empty=0.1, length=2.3),
         "This student is broken: 38 % of its answers repeat themselves (its teacher: 2 %), 41 % reach the token limit "
         "(its teacher: 2 %), 10 % are empty (its teacher: 2 %), and its answers are 2.3 times as long as its teacher's."),
        (looks(empty=0.1), "This student is broken: 10 % of its answers are empty (its teacher: 2 %)."),
        (looks(length=1.8), "This student runs on: its answers are 1.8 times as long as its teacher's."),
        (looks(copied=0.3),
         "This student copies: 30 % of its answers are, word for word, training answers to other prompts "
         "(its teacher: 2 %)."),
    ],
)  # fmt: skip
def test_the_headline_begins_with_what_is_wrong(student: AnswerQuality, said: str) -> None:
    one = with_looks(SEPARATE, student)
    assert warnings(one) == [said]
    assert markdown(one).startswith(f"# quick\n\n**{said}** The white-box student has")


@pytest.mark.parametrize(
    "student",
    [
        looks(),
        looks(repeats=0.06, wide=0.01),  # clear, and less than 5 points
        looks(repeats=0.12, wide=0.11),  # chance could do it
        looks(length=1.6, wide=0.1),
        looks(length=1.45, wide=0.01),
        AnswerQuality(near(1), near(1), near(1), near(1), None),  # there is no teacher to compare with
        AnswerQuality(NONE, NONE, NONE, NONE, None, DifferenceFromTeacher(NONE, NONE, NONE, NONE, None)),
    ],
)
def test_nothing_is_said_where_all_is_well_or_chance_could_do_it(student: AnswerQuality) -> None:
    one = with_looks(SEPARATE, student)
    assert warnings(one) == []
    assert findings(one) == findings(SEPARATE)
    assert "Warning" not in html(one)


def test_five_points_are_enough() -> None:
    less = DifferenceFromTeacher(Interval(0.05, 0.001, 0.1), NONE, NONE, NONE, None)
    quality = AnswerQuality(Interval(0.05, 0.001, 0.1), NONE, NONE, NONE, None, less)
    assert warnings(with_looks(SEPARATE, quality)) == [
        "This student is broken: 5 % of its answers repeat themselves (its teacher: 0 %)."
    ]


def test_two_things_that_are_wrong_are_two_sentences() -> None:
    (said,) = warnings(with_looks(SEPARATE, looks(repeats=0.5, copied=0.5)))
    assert said.startswith("This student is broken: 50 % ")
    assert " This student copies: 50 % of its answers are, word for word," in said


def test_a_copy_is_warned_of_where_the_student_is_sound() -> None:
    assert warnings(with_looks(QUANTISED, looks(), looks(repeats=0.9))) == [
        "The student's int8 copy is broken: 90 % of its answers repeat themselves (its teacher: 2 %)."
    ]
    (said,) = warnings(with_looks(QUANTISED, looks(repeats=0.5), looks(repeats=0.9)))
    assert said.startswith("This student is broken: 50 %")


def test_where_the_teacher_has_no_line_its_labels_are_named() -> None:
    alone = dataclasses.replace(BROKEN, models=BROKEN.models[1:])
    (said,) = warnings(alone)
    assert "(its labels: 2 %)" in said
    assert "2.3 times as long as its labels" in said


def test_small_shares_keep_a_digit() -> None:
    assert [percent(share) for share in (0, 0.004, 0.0149, 0.384, 1)] == ["0 %", "0.4 %", "1 %", "38 %", "100 %"]


def test_what_the_answers_look_like_is_a_table_of_its_own() -> None:
    headers, *rows = answer_quality_table(BROKEN)
    assert headers == ["model", "repeat themselves", "reach the token limit", "empty", "copied", "mean tokens"]
    assert rows[3] == [
        "white-box student", "38.0 % [35.0, 41.0]", "41.3 % [38.3, 44.3]", "2.0 % [-1.0, 5.0]", "2.0 % [-1.0, 5.0]",
        "46.0 [45.0, 47.0]",
    ]  # fmt: skip
    assert answer_quality_table(SEPARATE) == []
    one = dataclasses.replace(BROKEN, models=(*BROKEN.models[:-1], SEPARATE.models[-1]))
    assert answer_quality_table(one)[-1] == ["white-box student", *["–"] * 5]
    assert "## Quality of the answers\n\n| model | repeat themselves |" in markdown(BROKEN)
    assert "| repeat themselves | 2.0 % [0.0, 5.0] |" in markdown(BROKEN, narrow=True)
    assert "Quality of the answers" not in markdown(SEPARATE) + html(SEPARATE)


def test_the_page_s_place_is_named_below_the_verdict() -> None:
    text = markdown(BROKEN, narrow=True, page="[page](file:///x)")
    first, second, third = (text.index(part) for part in ("**This student is broken", "[page](file:///x)", "| model |"))
    assert first < second < third


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False)])
def test_the_warning_is_a_box_with_a_word_and_a_sign(width: int, dark: bool, tmp_path: Path) -> None:
    files = write_report(BROKEN, tmp_path)
    with open_page(files.html, width=width, touch=width < 500, dark=dark) as page:
        assert page.value("document.documentElement.scrollWidth") <= page.value("document.documentElement.clientWidth")
        assert page.value("document.querySelector('.warning').innerText.toLowerCase()").startswith("warning")
        assert page.value("document.querySelectorAll('.warning svg').length") == 1
        above, below = (
            page.value(f"document.querySelector('{selector}').getBoundingClientRect().{side}")
            for selector, side in ((".warning", "bottom"), (".verdict", "top"))
        )
        assert above <= below
        assert page.value("document.querySelector('.warning').getBoundingClientRect().right") <= width
        assert page.value("document.querySelectorAll('table.comparison').length") == 2
        assert page.errors == []
