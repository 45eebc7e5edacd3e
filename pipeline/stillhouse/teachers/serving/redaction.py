"""Redact a secret from texts of other programs, in any encoding.

    >>> redact = Redactor("sk-5f2+a9c1/7b")
    >>> redact("invalid key: Bearer sk-5f2%2Ba9c1%2F7b")
    'invalid key: Bearer ***'

A server repeats a key as it received it, or as its framework escapes it: percent-encoded in a URL, escaped in JSON, HTML or
a Python literal, or in base64. A key may contain any characters, so no generic key pattern can find it.
"""

from __future__ import annotations

import base64
import html
import re

_MARK = "***"
_SHORT = 8  # characters: a shorter secret may occur inside an ordinary word, so it is matched as a whole word
_KNOWN_FORM = re.compile(r"\bsk-[\w*-]{6,}")  # matches other keys, and keys that a server has partly masked
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")  # user and password in a URL, such as a proxy's


class Redactor:
    """A callable that returns a text without the secret. An empty secret is never matched."""

    def __init__(self, secret: str) -> None:
        self._pattern = re.compile(_secret_pattern(secret), re.I) if secret else None

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(_MARK, text)
        return _CREDENTIALS.sub(f"{_MARK}@", _KNOWN_FORM.sub(_MARK, text))


def _secret_pattern(secret: str) -> str:
    """Return a pattern for a secret, plain or in base64, with any escaping."""
    encoded = secret.encode()
    in_base64 = {kind(encoded).decode().rstrip("=") for kind in (base64.b64encode, base64.urlsafe_b64encode)}
    forms = [_escaped_pattern(secret), *(_escaped_pattern(form) + "(?:=|%3d)*" for form in sorted(in_base64))]
    pattern = "|".join(forms)
    return rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])" if len(secret) < _SHORT else pattern


def _escaped_pattern(text: str) -> str:
    return "".join(map(_character_pattern, text))


def _character_pattern(character: str) -> str:
    """Return a pattern for one character, plain or escaped for a URL, JSON, HTML or a Python literal."""
    code = ord(character)
    forms = (
        rf"\\*{re.escape(character)}",
        rf"\\+[ux]0*{code:x}",
        "".join(f"%(?:25)*{byte:02x}" for byte in character.encode()),
        rf"&(?:amp;)*#(?:0*{code}|x0*{code:x});",
        re.escape(html.escape(character)),
    )
    return f"(?:{'|'.join(forms)})"
