"""Bodies of responses, read as JSON objects."""

import pytest

from stillhouse.teachers.serving.json_bodies import json_object


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"a": "\\ud83d"}', "\ufffd"),  # half of a surrogate pair: cut off in mid-emoji
        (b'{"a": "\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"a": "\\ud83d", "b": "\\ud83d\\ude00"}', "\ufffd"),
        (b'{"a": "\xff"}', "\ufffd"),
        (b'{"a": "x", "logprob": -Infinity, "more": [NaN]}', "x"),
    ],
)
def test_a_body_that_is_whole_but_not_strictly_json_is_read(body: bytes, text: str) -> None:
    read = json_object(body)
    assert read is not None
    assert read["a"] == text


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b"<html>", b'{"a": 1', b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_object_is_none(body: bytes) -> None:
    assert json_object(body) is None
