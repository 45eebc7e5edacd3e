"""Figures, times and tables as text."""

import pytest

from stillhouse.formatting import format_amount, format_duration, format_number, format_usd, markdown_table


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (59.7 * 60, "1 h 0 min"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_told_as_people_say_them(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


@pytest.mark.parametrize(
    ("usd", "told"), [(0, "$0.00"), (0.00004, "less than $0.0001"), (0.0123, "$0.012"), (1234.5, "$1,234.50")]
)
def test_small_sums_keep_two_figures(usd: float, told: str) -> None:
    assert format_usd(usd) == told


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1 k"),
        (12_345, "12.3 k"),
        (999_900, "1 M"),
        (4.56e9, "4.56 G"),
        (2e15, "2e+03 T"),
    ],
)
def test_amounts(number: float, text: str) -> None:
    assert format_amount(number) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.123, "0.12"), (1.25, "1.2"), (12, "12"), (1234.5, "1,234"), (99.96, "100.0")]
)
def test_short_figures(value: float, text: str) -> None:
    assert format_number(value) == text


def test_cells_of_a_table_stay_in_their_cell() -> None:
    assert markdown_table(["a|b", ""], [["one\ntwo", "<b>"]]) == [
        "| a\\|b |  |",
        "| --- | --- |",
        "| one two | &lt;b> |",
    ]
