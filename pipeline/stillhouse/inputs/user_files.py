"""Read text and JSON from user files in UTF-8, or in the encoding of their byte-order mark, with clear errors.

    >>> decode_text("Erkläre {{ word }}.".encode("utf-16"))
    'Erkläre {{ word }}.'
    >>> with open("words.jsonl", "rb") as stream:                   # JSON lines
    ...     rows = [parse_json(line) for line in text_lines(stream)]
    >>> rows[0]["word"]
    'kettle'

Spreadsheets and Windows editors put a byte-order mark (BOM) before a text; it names the encoding and is not part of the
text. Input that cannot be read raises `Unreadable` with the reason; the caller adds the setting, the file and the row.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

MAX_JSON_DEPTH = 200  # levels of nesting: more than real tables have, too few for a RecursionError

_ENCODINGS = (  # UTF-32 before UTF-16: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_MARK = 4  # bytes


class Unreadable(ValueError):
    """A text or a JSON value cannot be read; the message gives the reason, to follow a file name in a longer message."""


def text_encoding(start: bytes) -> str:
    """Return the encoding of the byte-order mark at the start of a file; UTF-8 without one."""
    return next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """Decode the text of a file, without its byte-order mark.

    Raises:
        Unreadable: the data is not valid in the encoding of its byte-order mark (UTF-8 without one), or has zero bytes.
    """
    encoding = text_encoding(data[:_LONGEST_MARK])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"line {line} is not valid {name} ({error.reason}): save the file as UTF-8") from None
    if "\0" in text:
        raise Unreadable("it contains zero bytes, like UTF-16 without a byte-order mark: save the file as UTF-8")
    return text


def text_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file as UTF-8, without byte-order marks (concatenated files have several).

    Raises:
        Unreadable: the byte-order mark names UTF-16 or UTF-32, and the data is not valid in it. UTF-8 is not checked.
    """
    encoding = text_encoding(stream.peek(_LONGEST_MARK)[:_LONGEST_MARK])
    if encoding in ("utf-8", "utf-8-sig"):
        for line in stream:
            yield line.removeprefix(codecs.BOM_UTF8)
        return
    try:
        with io.TextIOWrapper(stream, encoding=encoding, newline="\n") as texts:
            for text in texts:
                yield text.removeprefix("\ufeff").encode()
    except UnicodeError as error:
        raise Unreadable(
            f"it is not valid {encoding.upper()}, although its byte-order mark says so ({error})"
        ) from None


def parse_json(text: str | bytes, *, fast: bool = False) -> Any:
    """Parse a JSON value; NaN and Infinity are accepted, as in Python's json.

    Args:
        fast: parse with orjson if possible: several times faster, but integers of more than 64 bits become floats.

    Raises:
        Unreadable: the text is not UTF-8, not JSON, or nested more than `MAX_JSON_DEPTH` levels deep.
    """
    try:
        value = _parse(text, fast)
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not valid UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if _may_be_deep(text) and _depth(value) > MAX_JSON_DEPTH:
        raise _too_deep()
    return value


def _parse(text: str | bytes, fast: bool) -> Any:
    plain = text.decode() if isinstance(text, bytes) else text
    if not fast:
        return json.loads(plain)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "depth" in str(error) or "recursion" in str(error).lower():
            raise RecursionError from None
        if "NaN" not in plain and "Infinity" not in plain:
            raise error from None
        return json.loads(plain)  # accepts NaN and Infinity, which pandas and Python write


def _too_deep() -> Unreadable:
    return Unreadable(f"it is nested more than {MAX_JSON_DEPTH} levels deep")


def _may_be_deep(text: str | bytes) -> bool:
    """Whether the brackets of a text might nest too deeply; brackets inside strings are counted too."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return False
    signs = np.frombuffer(data, np.uint8)
    opened = ((signs == ord("[")) | (signs == ord("{"))).astype(np.int64)
    closed = (signs == ord("]")) | (signs == ord("}"))
    return bool(np.cumsum(opened - closed).max() > MAX_JSON_DEPTH)


def _depth(value: Any) -> int:
    """Return the nesting depth of lists and objects, without recursion."""
    level, inside = 0, [value] if isinstance(value, (dict, list)) else []
    while inside:
        level += 1
        items = (item for one in inside for item in (one.values() if isinstance(one, dict) else one))
        inside = [item for item in items if isinstance(item, (dict, list))]
    return level
