"""Convert a cell of a user's table to text, for prompts, references and imports.

    >>> cell_text(0.00001), cell_text(b"tram"), cell_text(float("nan"))
    ('0.00001', 'tram', None)
    >>> cell_text(["a", "b"])
    Traceback (most recent call last):
    stillhouse.inputs.cells.NotText: a list

| a cell | its text |
| --- | --- |
| a text | unchanged |
| an integer, a decimal | its digits |
| a floating-point number | the shortest digits that round-trip, without an exponent from 0.000001 to below 10^21 |
| a boolean | true or false, as in JSON |
| a date, a time, a datetime | ISO 8601 |
| a UUID | its usual form |
| bytes | decoded as UTF-8, without a byte-order mark |
| null, NaN, an infinity, NaT | None: the cell is missing |
| a list, an object, anything else | NotText: use a template to format it |

Scalars of NumPy, pandas and Arrow are converted like Python's.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PLAIN_DIGITS = (1e-6, 1e21)  # range of numbers written without an exponent, as in JavaScript


class NotText(ValueError):
    """A cell that cannot be converted to text; the message says what it is, such as "a list"."""

    def __init__(self, what: str, value: object) -> None:
        super().__init__(what)
        self.value = value


def is_missing(value: object) -> bool:
    """Whether a cell is missing: null, NaN, an infinity or NaT."""
    if isinstance(value, (str, list, dict)):
        return False
    value = _python_value(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which may not be installed
        return True
    if isinstance(value, (float, np.floating)):
        return not math.isfinite(value)
    if isinstance(value, decimal.Decimal):
        return not value.is_finite()
    return isinstance(value, np.datetime64) and bool(np.isnat(value))


def cell_text(value: object) -> str | None:
    """Return the text of a cell, or None if it is missing, by the table in the module's docstring.

    Raises:
        NotText: the cell is a list, an object, bytes that are not UTF-8, or of another unsupported type.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    value = _python_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, uuid.UUID, np.datetime64)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        return _format_float(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise NotText("bytes that are not UTF-8", value) from None
    raise NotText(_kind(value), value)


def _format_float(value: float | np.floating[Any]) -> str:
    text = str(value)  # for Python and NumPy floats, the shortest digits that round-trip
    smallest, largest = _PLAIN_DIGITS
    is_plain = "e" in text and smallest <= abs(float(value)) < largest
    return format(decimal.Decimal(text), "f") if is_plain else text


def _python_value(value: object) -> object:
    """Convert an Arrow or NumPy scalar to a Python value, except NumPy floats and datetimes, whose digits would change."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.generic) and not isinstance(value, (np.floating, np.datetime64)):
        return value.item()
    return value


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (Sequence, set, frozenset, np.ndarray)):
        return "a list"
    return f"a {type(value).__name__}"
