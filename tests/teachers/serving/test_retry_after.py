"""How long a server asks to wait: every form that headers have it in, on a clock of the test's own."""

import time
from collections.abc import Mapping

import httpx2
import pytest

from stillhouse.teachers.serving.retry_after import requested_pause, retry_after

NOW = 1_764_400_000.0  # Sat, 29 Nov 2025 07:06:40 GMT


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def spent(reset: str, of: str = "requests") -> Mapping[str, str]:
    return {f"x-ratelimit-remaining-{of}": "0", f"x-ratelimit-reset-{of}": reset}


WAITS = [  # as a server writes 30 seconds, and what else it may write
    ("30", 30),
    (" 30 ", 30),
    ("+30", 30),
    ("30.", 30),
    ("3e1", 30),
    ('"30"', 30),
    (".5", 0.5),
    ("1.5", 1.5),
    ("30s", 30),
    ("1s", 1),
    ("30 s", 30),
    ("30sec", 30),
    ("30 seconds", 30),
    ("about 30 seconds", 30),
    ("30000ms", 30),
    ("30000 milliseconds", 30),
    ("0.5m", 30),
    ("1m30s", 90),
    ("6m0.5s", 360.5),
    ("1h2m3s", 3723),
    ("1 hour 5 min", 3900),
    ("1d", 86400),
    ("250us", 0.00025),
    ("250µs", 0.00025),
    ("PT30S", 30),
    ("PT1M30S", 90),
    ("30, 12", 30),
    ("12s, 30s", 30),
    ("1764400030", 30),
    ("1764400030.5", 30.5),
    ("1764400030000", 30),
    ("1764400030000000", 30),
    ("1764400030000000000", 30),
    ("2025-11-29T07:07:10Z", 30),
    ("2025-11-29T07:07:10.500Z", 30.5),
    ("2025-11-29T08:07:10+01:00", 30),
    ("2025-11-29T07:07:10", 30),
    ("2025-11-29 07:07:10", 30),
    ("Sat, 29 Nov 2025 07:07:10 GMT", 30),
    ("Sat, 29 Nov 2025 08:07:10 +0100", 30),
    ("Sat, 29 Nov 2025 07:07:10 -0000", 30),
    ("31536000", 31_536_000),  # a year: what to do about it is the engine's to decide
    ("999999999", 999_999_999),
    # what has passed, and what tells of no time
    ("0", 0),
    ("-5", 0),
    ("-5s", 0),
    ("1764399990", 0),
    ("1764399990000", 0),
    ("2025-11-29T07:06:30Z", 0),
    ("Sat, 29 Nov 2025 07:06:30 GMT", 0),
    ("", 0),
    ("soon", 0),
    ("nan", 0),
    ("inf", 0),
    ("1e999", 0),
    ("Sat, 99 Nov 99999 07:06:30 GMT", 0),
]


@pytest.mark.parametrize(("text", "seconds"), WAITS)
def test_a_wait_is_read_in_every_form_that_servers_write_it_in(text: str, seconds: float) -> None:
    spent = [(b"x-ratelimit-remaining-tokens", b"0"), (b"x-ratelimit-reset-tokens", text.encode())]
    assert retry_after(httpx2.Headers([(b"retry-after", text.encode())])) == pytest.approx(seconds)
    assert retry_after(httpx2.Headers(spent)) == pytest.approx(seconds)
    assert requested_pause(httpx2.Headers(spent)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500.5"}, 1.5005),
        ({"retry-after-ms": "1764400030000"}, 30),
        ({"retry-after-ms": "90s"}, 90),
        ({"retry-after-ms": "-5"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "soon", **spent("9s")}, 9),
        ({"retry-after": "7", **spent("9s")}, 7),
    ],
)
def test_of_several_headers_the_most_precise_that_can_be_read_counts(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(httpx2.Headers(headers)) == pytest.approx(seconds)


@pytest.mark.parametrize("remaining", ["0", " 0 ", "0.0", "00", "-12"])
def test_nothing_remains(remaining: str) -> None:
    headers = {"x-ratelimit-remaining-tokens": remaining, "x-ratelimit-reset-tokens": "2s"}
    assert requested_pause(httpx2.Headers(headers)) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "2s"},
        {"x-ratelimit-remaining-tokens": "0.5", "x-ratelimit-reset-tokens": "2s"},
        {"x-ratelimit-remaining-tokens": "unlimited", "x-ratelimit-reset-tokens": "2s"},
        {"x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-tokens": "2s"},
        {"x-ratelimit-reset-requests": "9s"},
        {"x-remaining-time": "0", "x-reset-time": "9"},
    ],
)
def test_an_answer_asks_for_no_pause_while_something_remains_or_no_time_is_named(headers: dict[str, str]) -> None:
    assert requested_pause(httpx2.Headers(headers)) == 0


def test_the_limit_that_is_free_again_last_counts() -> None:
    for first, second in (("1s", "3s"), ("3s", "1s")):
        headers = {**spent(first), **spent(second, "tokens"), "x-ratelimit-remaining-images": "7"}
        assert requested_pause(httpx2.Headers(headers)) == 3


@pytest.mark.parametrize("text", ["2025-11-29T07:07:10", "Sat, 29 Nov 2025 07:07:10 -0000"])
def test_a_date_without_a_time_zone_is_utc_wherever_this_machine_stands(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after(httpx2.Headers({"retry-after": text})) == 30
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("remaining", "reset"),
    [
        ("X-RateLimit-Remaining", "X-RateLimit-Reset"),
        ("X-Rate-Limit-Remaining", "X-Rate-Limit-Reset"),
        ("RateLimit-Remaining", "RateLimit-Reset"),
        ("x-ratelimit-remaining-requests-day", "x-ratelimit-reset-requests-day"),
        ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ],
)
def test_rate_limits_are_found_under_the_names_that_servers_give_them(remaining: str, reset: str) -> None:
    assert requested_pause(httpx2.Headers({remaining: "0", reset: "1764400030"})) == 30
