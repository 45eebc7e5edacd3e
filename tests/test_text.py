"""The words of a text and what two texts share."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.text import enumerated, shingles, short_quote, token_f1, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don’t panic!", "don't  panic"),
        ("“Yes,” she said.", '"Yes", she said'),
        ("ＡＢＣ ﬁne", "abc fine"),
        ("STRASSE", "Straße"),
        ("a – b", "a - b"),
        ("5*3", "5 * 3."),
        ("cafe\u0301", "café"),
    ],
)
def test_what_is_folded_away(one: str, other: str) -> None:
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"), [("5 * 3", "5 / 3"), ("-1", "1"), ("3.5", "35"), ("3.5", "3 5"), ("x < y", "x > y"), ("a", "b")]
)
def test_what_changes_the_meaning_stays(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_ideographs_are_words_of_their_own() -> None:
    assert words("東京はどこ。") == ["東", "京", "は", "ど", "こ"]


@given(st.text())
def test_folding_is_the_same_for_every_case_and_form(text: str) -> None:
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))
    assert all(word and not word.isspace() for word in words(text))


def test_shingles() -> None:
    assert shingles("A b, c d.") == {"a b c", "b c d"}
    assert shingles("a b") == {"a b"}
    assert shingles("") == {""}


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("A kettle boils water.", "a kettle boils water", 1.0),
        ("x", "y", 0.0),
        ("a b c d", "a b", 2 / 3),
        ("", "", 1.0),
        ("a a", "a", 2 / 3),
    ],
)
def test_token_f1(answer: str, reference: str, score: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(score)


def test_shortened() -> None:
    assert short_quote("two\n lines") == "'two lines'"
    assert short_quote("abcdef", 4) == "'abc…'"


@pytest.mark.parametrize(("parts", "text"), [(["a"], "a"), (["a", "b"], "a, and b"), (["a", "b", "c"], "a, b, and c")])
def test_parts_are_enumerated(parts: list[str], text: str) -> None:
    assert enumerated(parts) == text
