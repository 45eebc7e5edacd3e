"""Errors as servers word them, with an error status and inside an answer with status 200."""

from collections.abc import Mapping
from typing import Any

import pytest

from stillhouse.teachers.serving.error_bodies import read_error


@pytest.mark.parametrize(
    ("data", "words", "status"),
    [
        ({"error": {"message": "away", "code": 502}}, "away 502", 502),
        ({"error": {"message": "away", "code": "503"}}, "away 503", 503),
        ({"error": "away", "code": 500}, "away 500", 500),
        ({"error": {"message": "no", "type": "invalid_api_key"}}, "no invalid_api_key", 401),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "busy overloaded_error", 503),
        ({"object": "error", "message": "too long", "code": 400}, "too long 400", 400),
        ({"choices": [{"error": {"message": "away", "code": 502}, "finish_reason": "error"}]}, "away 502", 502),
        ({"choices": [{"message": {"content": "Bl", "error": {"message": "away", "code": 504}}}]}, "away 504", 504),
        ({"data": {"error": {"detail": "away"}}}, "away", 200),
    ],
)
def test_an_error_is_found_wherever_it_stands(data: Mapping[str, Any], words: str, status: int) -> None:
    error = read_error(data)
    assert error is not None
    assert (error.text, error.status_of(200)) == (words, status)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"error": None, "choices": [{"message": {"content": '{"error": "in a text"}'}, "error": None}]},
        {"choices": [{"logprobs": {"content": [{"token": "error", "error": "x"}]}}]},
        {"choices": [], "error": ""},
    ],
)
def test_an_answer_without_an_error_has_none(data: Mapping[str, Any]) -> None:
    assert read_error(data) is None
