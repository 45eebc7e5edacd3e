"""Answers held against the reference of their prompt."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.quality.reference_match import last_number, open_filter
from tests.quality.completions import completion


@pytest.mark.parametrize(
    ("how", "text", "reference", "kept"),
    [
        ("exact", "Paris.", "paris", True),
        ("exact", "It is Paris", "Paris", False),
        ("contains", "It is “Paris”, I think.", "Paris", True),
        ("contains", "I know that.", "no", False),
        ("contains", "答えは東京です。", "東京", True),
        ("contains", "The red old tram", "red tram", False),
        ("contains", "It is 42.", "42", True),
        ("contains", "It is 142.", "42", False),
        ("number", "5 * 8 = 40, and 2 more is 42.", "He gets 42.\n#### 42", True),
        ("number", "So it costs $1,000.00", "#### 1000", True),
        ("number", "So it is 41", "#### 42", False),
        ("number", "I do not know", "#### 42", False),
        ("f1", "a kettle boils water", "a kettle boils", True),
        ("f1", "a tram runs", "kettles boil water", False),
    ],
)
def test_how(how: str, text: str, reference: str, kept: bool) -> None:
    assert (open_filter({"how": how})(completion(text, reference=reference)) is None) is kept


def test_the_detail_shows_both() -> None:
    said = open_filter({"how": "number"})(completion("It is 41.", reference="#### 42"))
    assert said == "'It is 41.' disagrees with the reference '#### 42' (number)"


def test_the_threshold_of_f1() -> None:
    half = completion("a b c d", reference="a b")  # F1 is 2/3
    assert open_filter({"how": "f1", "threshold": 0.6})(half) is None
    assert open_filter({"how": "f1", "threshold": 0.7})(half) is not None


@pytest.mark.parametrize(("how", "reference"), [("exact", None), ("number", None), ("number", "a proof by induction")])
def test_a_row_without_a_reference(how: str, reference: str | None) -> None:
    one = completion("42", reference=reference)
    assert open_filter({"how": how})(one) is None
    assert (
        open_filter({"how": how, "without_reference": "reject"})(one) == "the prompt has no reference to compare with"
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("#### 42\nThat took 3 steps.", 42),
        ("#### 1. Add them\nThis gives 9.", 9),
        ("#### $70,000", 70_000),
        (r"so \boxed{42} of 50", 42),
        (r"\boxed{42\text{ cm}^2} and 7", 42),
        (r"\boxed{7} was wrong, it is \boxed{8}, said 9", 8),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"12{,}000", 12_000),
        (r"1\,234", 1234),
        ("2000/2", 1000),
        ("3/0", 3),
        ("$1,234.50", Fraction("1234.5")),
        ("12,34,567", 1_234_567),
        ("-$5", -5),
        ("$-5", -5),
        ("€ 5", 5),
        ("x = −3", -3),
        ("5-3", 3),
        ("1,2,3", 3),
        (".5", Fraction(1, 2)),
        ("25 m^2", 25),
        ("10%", 10),
        ("H2O", None),
        ("none", None),
        ("1" * 5000, None),
        ("", None),
    ],
)
def test_last_number(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_is_read_back_however_it_is_written(value: Any) -> None:
    forms = [f"{value}", f"{value:,}", f"It is ${value:,}.", f"#### {value}\nin 2 steps", rf"\boxed{{{value}}} of 7"]
    assert {last_number(form) for form in forms} == {Fraction(value)}


@given(st.text(alphabet="0123456789.,-/$#{}\\ \nboxed"))
def test_no_text_breaks_it(text: str) -> None:
    last_number(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "quality.reference-match.how: it is missing"),
        ({"how": "bleu"}, "quality.reference-match.how"),
        ({"how": "exact", "threshold": 0.5}, "threshold is only for `how: f1`, and how is 'exact'"),
        ({"how": "f1", "threshold": 2}, "quality.reference-match.threshold"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_filter(options)
    assert words in str(caught.value)


@pytest.mark.parametrize("how", ["exact", "contains", "number", "f1"])
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_reference_is_none(how: str, blank: str) -> None:
    one = completion("42", reference=blank)
    assert one.prompt.reference is None
    assert open_filter({"how": how})(one) is None
    assert (
        open_filter({"how": how, "without_reference": "reject"})(one) == "the prompt has no reference to compare with"
    )
