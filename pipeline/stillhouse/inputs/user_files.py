"""Text and JSON that people bring: files in any encoding that names itself, and errors that say where a file is wrong.

    for line in text_lines(stream): row = parse_json(line)      # JSON lines, from UTF-8, UTF-16 or UTF-32
    template = decode_text(file.read_bytes())

Spreadsheets and Windows editors put a byte-order mark before a text; it names the encoding and is no part of the text.
What cannot be read is an `Unreadable`, whose message says why: the caller adds the setting, the file and the row.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

DEEPEST_JSON = 200  # levels of nesting: more than any table has, and less than any code that walks them stumbles over

_ENCODINGS = (  # the longer mark first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_MARK = 4  # bytes


class Unreadable(ValueError):
    """A text or a JSON value that cannot be read; the message is the end of a sentence about it."""


def text_encoding(start: bytes) -> str:
    """The encoding that a byte-order mark at the start of a file names; UTF-8 where there is none."""
    return next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """The text of a file, without its byte-order mark.

    Raises:
        Unreadable: it is not in the encoding that its mark names, or not in UTF-8 where it has none.
    """
    encoding = text_encoding(data[:_LONGEST_MARK])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"line {line} is not {name} ({error.reason}): save the file as UTF-8") from None
    if "\0" in text:
        raise Unreadable("it holds zero bytes, as UTF-16 without a byte-order mark does: save the file as UTF-8")
    return text


def text_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a file as UTF-8, without byte-order marks (files that were put together have several).

    Raises:
        Unreadable: a file of another encoding than UTF-8 is not in the one that its mark names.
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
        raise Unreadable(f"it is not {encoding.upper()}, which its byte-order mark names ({error})") from None


def parse_json(text: str | bytes, *, fast: bool = False) -> Any:
    """A JSON value, with Python's NaN and Infinity where they are written out.

    Args:
        fast: read with orjson where it can: several times faster, and an integer of more than 64 bits is a float.

    Raises:
        Unreadable: it is not UTF-8, not JSON, or nested in more than `DEEPEST_JSON` levels.
    """
    try:
        value = _parse(text, fast)
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if _may_be_deep(text) and _depth(value) > DEEPEST_JSON:
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
        return json.loads(plain)  # which knows these two, and which pandas and Python write


def _too_deep() -> Unreadable:
    return Unreadable(f"it is nested too deeply, in more than {DEEPEST_JSON} levels")


def _may_be_deep(text: str | bytes) -> bool:
    """Whether the brackets of a text could nest too deeply; those inside strings are counted too."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") <= DEEPEST_JSON:
        return False
    signs = np.frombuffer(data, np.uint8)
    opened = ((signs == ord("[")) | (signs == ord("{"))).astype(np.int64)
    closed = (signs == ord("]")) | (signs == ord("}"))
    return bool(np.cumsum(opened - closed).max() > DEEPEST_JSON)


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted without recursion."""
    level, inside = 0, [value] if isinstance(value, (dict, list)) else []
    while inside:
        level += 1
        items = (item for one in inside for item in (one.values() if isinstance(one, dict) else one))
        inside = [item for item in items if isinstance(item, (dict, list))]
    return level
