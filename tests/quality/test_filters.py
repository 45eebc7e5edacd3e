"""What the filters keep and what they reject."""

import sys

import pytest

from stillhouse.errors import RecipeError
from stillhouse.quality.base import apply_filters
from stillhouse.records import Completion
from tests.quality.completions import completion, filters


def reason(one: Completion, *settings: dict[str, object]) -> str | None:
    verdict = apply_filters(one, filters(*settings))
    return verdict.reason if verdict else None


def detail(one: Completion, *settings: dict[str, object]) -> str | None:
    verdict = apply_filters(one, filters(*settings))
    return verdict.detail if verdict else None


def test_no_filter_keeps_everything() -> None:
    assert reason(completion("")) is None


def test_finish_reason() -> None:
    assert reason(completion(finish_reason="length"), {"kind": "finish-reason"}) == "finish-reason"
    assert reason(completion(finish_reason="length"), {"kind": "finish-reason", "allowed": ["length"]}) is None
    assert reason(completion(), {"kind": "finish-reason"}) is None


def test_finish_reason_tells_the_tokens_where_they_were_counted() -> None:
    assert detail(completion(finish_reason="length"), {"kind": "finish-reason"}) == "ended by length after 5 tokens"
    uncounted = completion(finish_reason="length", tokens=None)
    assert detail(uncounted, {"kind": "finish-reason"}) == "ended by length"


@pytest.mark.parametrize(("tokens", "expected"), [(1, "length"), (2, None), (9, None), (10, "length")])
def test_length(tokens: int, expected: str | None) -> None:
    assert reason(completion(tokens=tokens), {"kind": "length", "min_tokens": 2, "max_tokens": 9}) == expected


@pytest.mark.parametrize(("text", "expected"), [("a", "length"), ("ab", None), ("abcd", None), ("abcde", "length")])
def test_length_in_characters(text: str, expected: str | None) -> None:
    assert reason(completion(text, tokens=None), {"kind": "length", "min_chars": 2, "max_chars": 4}) == expected


def test_length_says_which_bound_was_passed() -> None:
    assert detail(completion(tokens=1), {"kind": "length", "min_tokens": 2}) == "1 tokens, fewer than min_tokens=2"
    assert detail(completion("abc"), {"kind": "length", "max_chars": 2}) == "3 chars, more than max_chars=2"


def test_a_bound_in_tokens_cannot_be_held_where_none_were_counted() -> None:
    said = detail(completion(tokens=None), {"kind": "length", "max_tokens": 9, "max_chars": 9})
    assert said == "the teacher reports no number of tokens; use min_chars and max_chars instead"


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("positive", {"mode": "fullmatch", "pattern": "positive|negative"}, None),
        ("positive!", {"mode": "fullmatch", "pattern": "positive|negative"}, "the text does not match 'positive|neg"),
        ("see https://x.org", {"pattern": "https?://", "reject": True}, "'https://' matches 'https?://'"),
        ("see there", {"pattern": "https?://", "reject": True}, None),
        ("two\nlines", {"pattern": "^lines$"}, "the text does not match '^lines$'"),
        ("two\nlines", {"pattern": "(?m)^lines$"}, None),
    ],
)
def test_regex(text: str, settings: dict[str, object], expected: str | None) -> None:
    said = detail(completion(text), {"kind": "regex", **settings})
    assert said is expected is None or (said is not None and expected is not None and said.startswith(expected))


@pytest.mark.parametrize(
    ("text", "expected"), [("", "empty"), (" \n", "empty"), ("...", "empty"), ("é", None), ("7", None)]
)
def test_empty(text: str, expected: str | None) -> None:
    assert reason(completion(text), {"kind": "empty"}) == expected


def test_the_first_filter_that_rejects_gives_the_reason() -> None:
    one = completion("", tokens=99)
    assert reason(one, {"kind": "empty"}, {"kind": "length", "max_tokens": 9}) == "empty"
    assert reason(one, {"kind": "length", "max_tokens": 9}, {"kind": "empty"}) == "length"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "lenght"}, "quality.0.kind is 'lenght': there is no such kind. Did you mean 'length'?"),
        ({"kind": "length", "max": 3}, "quality.length.max: there is no such setting"),
        ({"kind": "length", "max_tokens": 0}, "quality.length.max_tokens"),
        ({"kind": "length"}, "set at least one of min_tokens, max_tokens, min_chars and max_chars"),
        ({"kind": "length", "min_chars": 3, "max_chars": 2}, "min_chars is 3 and max_chars is 2, so no completion"),
        ({"kind": "empty", "x": 1}, "quality.empty.x"),
        ({"kind": "regex"}, "quality.regex.pattern: it is missing"),
        ({"kind": "regex", "pattern": "("}, "quality.regex.pattern is '(': it must be a valid regular expression"),
        ({"kind": "regex", "pattern": "a", "mode": "match"}, "quality.regex.mode"),
    ],
)
def test_a_wrong_filter_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        filters(settings)
    assert words in str(caught.value)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    monkeypatch.delitem(sys.modules, "stillhouse.quality.duplicates", raising=False)
    with pytest.raises(RecipeError, match="'duplicates': it needs the library 'datasketch'.*Run `pip install data"):
        filters({"kind": "duplicates"})


def test_repetition() -> None:
    loop = completion("A hat is a hat that is made of cloth that is made of cloth that is made of cloth.")
    assert reason(loop, {"kind": "repetition"}) == "repetition"
    assert detail(loop, {"kind": "repetition"}) == "41% of its 4-word n-grams are repeats"
    assert reason(loop, {"kind": "repetition", "share": 0.6}) is None
    assert reason(completion("A hat is a piece of cloth that keeps the head warm."), {"kind": "repetition"}) is None
    with pytest.raises(RecipeError, match=r"quality\.repetition\.share"):
        filters({"kind": "repetition", "share": 0})


def test_a_plugin_with_the_hook_of_0_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would silently hear of no kept completion."""

    class Longer:
        def __call__(self, one: Completion) -> str | None:
            return None

        def remember(self, one: Completion) -> None: ...

    monkeypatch.setattr("stillhouse.quality.base.load_kind", lambda *_, **__: lambda options: Longer())
    with pytest.raises(RecipeError, match="Rename the method `remember` to `record_kept`") as caught:
        filters({"kind": "longer"})
    assert caught.value.setting == "quality.0.kind"
    monkeypatch.setattr(Longer, "record_kept", Longer.remember, raising=False)  # for both versions
    assert len(filters({"kind": "longer"})) == 1
