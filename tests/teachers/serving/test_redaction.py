"""A key is cut out of whatever a server says, whatever the key looks like and however the server quotes it."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest

from stillhouse.teachers.serving.redaction import Redactor

KEYS = [
    "sk-live-4f9a1c77e2",
    "0123456789abcdef0123456789abcdef",
    "AbC/dEf+GhI/jKl==",
    "k.e-y_w~i!t(h)marks",
    "q\"uo<te>&'s\\x41",
    "p%20q%2Fzz99",
    "EMPTY",
    "abc",
    "7",
]


def forms(key: str) -> list[str]:
    """A key as servers, frameworks and logs write it."""
    encoded = base64.b64encode(key.encode()).decode()
    return [
        key,
        key.upper(),
        quote(key),
        quote(key, safe=""),
        quote_plus(key),
        quote(quote(key, safe=""), safe=""),
        json.dumps(key)[1:-1],
        json.dumps(json.dumps(key)[1:-1])[1:-1],
        json.dumps(key)[1:-1].replace("/", "\\/"),
        "".join(f"\\u{ord(character):04x}" for character in key),
        repr(key)[1:-1],
        html.escape(key),
        "".join(f"&#{ord(character)};" for character in key),
        "".join(f"&#x{ord(character):X};" for character in key),
        encoded,
        encoded.rstrip("="),
        quote(encoded, safe=""),
        base64.urlsafe_b64encode(key.encode()).decode(),
    ]


@pytest.mark.parametrize("key", KEYS)
def test_the_key_is_hidden_in_every_form(key: str) -> None:
    redact = Redactor(key)
    for form in forms(key):
        assert redact(f"you came with Bearer {form}, it seems") == "you came with Bearer ***, it seems", form


@pytest.mark.parametrize("key", [key for key in KEYS if len(key) >= 8])
def test_a_long_key_is_hidden_within_other_characters_too(key: str) -> None:
    assert Redactor(key)(f"a{key}b{key}") == "a***b***"


def test_a_short_key_spoils_no_other_word() -> None:
    redact = Redactor("the")
    assert redact("then the other, there: the.") == "then *** other, there: ***."


def test_without_a_key_nothing_is_hidden_but_what_looks_like_one() -> None:
    redact = Redactor("")
    assert redact("no key, no mark") == "no key, no mark"
    assert redact("Incorrect API key: sk-proj-****abcd.") == "Incorrect API key: ***."


def test_user_and_password_of_a_url_are_hidden() -> None:
    assert Redactor("")("407, url=http://me:s3cret@proxy:3128/") == "407, url=http://***@proxy:3128/"
