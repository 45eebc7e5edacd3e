"""Parse how long a server asks to wait: `retry-after` and the many forms of rate-limit headers.

    >>> import httpx2
    >>> retry_after(httpx2.Headers({"retry-after": "20"}))       # of a refusal: seconds
    20.0

Servers write the same wait as seconds, as a duration ("1s", "6m0s", "120ms"), as a date, or as a timestamp in seconds or
milliseconds since 1970. Parsed as a duration, a timestamp would be a wait of half a century.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"[+-]?(?:{_NUMBER})(?:e[+-]?\d+)?", re.I)
_DURATION_PART = re.compile(
    rf"({_NUMBER})\s*(nanoseconds?|ns|microseconds?|[uµμ]s|milliseconds?|millis|msecs?|ms|seconds?|secs?|s"
    r"|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![a-z])",
    re.I,
)
_UNITS = (  # prefixes of units, the longest first
    ("nano", 1e-9),
    ("ns", 1e-9),
    ("micro", 1e-6),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("milli", 1e-3),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
)
_EPOCH = 1e9  # seconds: a larger number is a timestamp (2001 or later), not a duration (over 31 years)
_EPOCH_UNITS = (1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)  # from here on, nano-, micro-, milliseconds
_NONE_REMAINING = re.compile(r"\s*(-[\d.]+|0+(\.0*)?)\s*")  # a value of no remaining requests or tokens


def retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds that a server asks to wait after a refusal; 0 if it names none."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after")
    if milliseconds and (seconds := _seconds(milliseconds, unit=1e-3)) is not None:
        return seconds
    if after and (seconds := _seconds(after)) is not None:
        return seconds
    return requested_pause(headers)


def requested_pause(headers: httpx2.Headers) -> float:
    """Return the seconds until a `...ratelimit...-reset...` header allows another request; 0 if some remain."""
    wait = 0.0
    for raw, value in headers.raw:
        name = raw.lower()
        if b"remaining" in name and b"limit" in name and _NONE_REMAINING.fullmatch(value.decode("latin-1")):
            reset = headers.get(name.replace(b"remaining", b"reset").decode("latin-1"), "")
            wait = max(wait, _seconds(reset) or 0.0)
    return wait


def _seconds(text: str, *, unit: float = 1.0) -> float | None:
    """Parse a wait in any form as seconds from now, never below 0; None if the text contains no wait.

    Args:
        text: a header's value.
        unit: seconds per unit of a number without a unit.
    """
    text = text.strip().strip("\"'")
    if _PLAIN.fullmatch(text):
        return _seconds_of_number(float(text), unit)
    if (moment := _timestamp(text)) is not None:
        return max(0.0, moment - time.time())
    if "," in text:  # repeated headers are joined by commas
        waits = [wait for part in text.split(",") if (wait := _seconds(part, unit=unit)) is not None]
        return max(waits, default=None)
    if parts := _DURATION_PART.findall(text):
        sign = -1.0 if text.startswith("-") else 1.0
        return max(0.0, sign * sum(float(number) * _unit(name) for number, name in parts))
    return None


def _seconds_of_number(number: float, unit: float) -> float | None:
    """Return the seconds of a duration, or until a timestamp; None if the number exceeds a float."""
    if math.isinf(number):
        return None
    seconds = number * unit
    if number >= _EPOCH and seconds >= _EPOCH:
        seconds = number * next((size for least, size in _EPOCH_UNITS if number >= least), 1.0) - time.time()
    return max(0.0, seconds)


def _timestamp(text: str) -> float | None:
    """Parse an HTTP or ISO 8601 date as seconds since 1970; a date without a time zone is UTC."""
    for read in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            moment = read(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None


def _unit(name: str) -> float:
    """Return the seconds of one unit."""
    return next(seconds for prefix, seconds in _UNITS if name.lower().startswith(prefix))
