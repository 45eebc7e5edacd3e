"""Read the body of a response as a JSON object, and the error that it reports, if any."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from stillhouse.teachers.serving.error_bodies import ErrorBody, read_error


def json_object(content: bytes) -> Mapping[str, Any] | None:
    """Parse a body as a JSON object, or return None. Tolerates NaN, lone surrogates and invalid UTF-8: it was paid for."""
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            data = _encodable(json.loads(content.decode("utf-8", "replace")))
        except (ValueError, RecursionError):
            return None
    return data if isinstance(data, dict) else None


def json_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects of a file with one in each line; other lines, such as one that was cut off, are left out."""
    with file.open("rb") as lines:
        for line in lines:
            if (found := json_object(line)) is not None:
                yield found


def error_in(body: bytes) -> ErrorBody | None:
    """Return the error that the body of a response reports; None if it reports none or is not a JSON object."""
    data = json_object(body)
    return read_error(data) if data is not None else None


def _encodable(value: Any) -> Any:
    """Return a JSON value whose strings can all be encoded as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    return value
