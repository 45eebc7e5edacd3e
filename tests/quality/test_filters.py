"""What the filters keep and what they reject."""

import pytest

from pipeline.config import FilterSettings
from pipeline.errors import RecipeError
from pipeline.quality.base import Verdict, judge, open_filters
from pipeline.records import Completion, FinishReason, Message, Prompt


def completion(text: str = "Fine.", tokens: int = 5, finish_reason: FinishReason = "stop") -> Completion:
    return Completion("k", Prompt((Message("user", "q"),)), 0, text, finish_reason, 3, tokens, "t", "now")


def reason(one: Completion, *filters: dict[str, object]) -> str | None:
    verdict: Verdict | None = judge(one, open_filters([FilterSettings.model_validate(each) for each in filters]))
    return verdict.reason if verdict else None


def test_no_filter_keeps_everything() -> None:
    assert reason(completion("")) is None


def test_finish_reason() -> None:
    assert reason(completion(finish_reason="length"), {"kind": "finish-reason"}) == "finish-reason"
    assert reason(completion(finish_reason="length"), {"kind": "finish-reason", "allowed": ["length"]}) is None
    assert reason(completion(), {"kind": "finish-reason"}) is None


@pytest.mark.parametrize(("tokens", "expected"), [(1, "length"), (2, None), (9, None), (10, "length")])
def test_length(tokens: int, expected: str | None) -> None:
    assert reason(completion(tokens=tokens), {"kind": "length", "min_tokens": 2, "max_tokens": 9}) == expected


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
        ({"kind": "empty", "x": 1}, "quality.empty.x"),
    ],
)
def test_a_wrong_filter_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_filters([FilterSettings.model_validate(settings)])
    assert words in str(caught.value)
