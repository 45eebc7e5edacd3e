"""Split texts into words, and measure how much two texts share.

    >>> words("It’s 3.5 km, said Ada.")
    ['its', '3.5', 'km', 'said', 'ada']

Case, quote and dash variants, white space and sentence punctuation are normalized away. What changes the meaning stays:
`5 * 3` differs from `5 / 3`, and `-1` from `1`.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_QUOTES = re.compile("[\"'`´‘’‚‛“”„«»‹›]")
_MARKS = re.compile(r"[.,:](?!\d)|[;!?…¿¡。、]")
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and ideographs: written without spaces
_WORD = re.compile(rf"(?<!\w)-?\d+(?:[.,:]\d+)*|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_PLAIN_WORD = re.compile(r"\w+")
_BARE_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

GRAM = 4  # words
REPEATED_SHARE = 0.2  # least share of repeated n-grams at which a text counts as repetitive


def words(text: str) -> list[str]:
    """Return the words of a text in order, folded (Unicode NFKC and case); a number, sign or ideograph is a word."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    return _WORD.findall(_MARKS.sub(" ", _QUOTES.sub("", folded)))


def bare_words(text: str) -> list[str]:
    """Return the words of a text in order, without case, quotes or any sign; each ideograph or kana is a word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _BARE_WORD.findall(_QUOTES.sub("", folded))


def repeated_share(text: str) -> float:
    """Return the share of a text's word n-grams that occurred earlier in it, 0..1; 0 if it is too short to have any.

    Words are those of `bare_words`, n is `GRAM` (4): the repetition measure of Welleck et al. 2019 (arXiv 1908.04319,
    seq-rep-4).
    """
    words = bare_words(text)
    grams = len(words) - GRAM + 1
    if grams < 1:
        return 0.0
    distinct = len({tuple(words[start : start + GRAM]) for start in range(grams)})
    return (grams - distinct) / grams


def repeats_itself(text: str) -> bool:
    """Whether at least `REPEATED_SHARE` of a text's word n-grams occurred earlier in it."""
    return repeated_share(text) >= REPEATED_SHARE


def shingles(text: str, size: int = 3) -> set[str]:
    """Return every run of `size` consecutive words of a text; a shorter text is one run."""
    listed = words(text)
    return {" ".join(listed[start : start + size]) for start in range(max(1, len(listed) - size + 1))}


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of word precision and recall, ignoring case and punctuation (SQuAD, arXiv 1606.05250)."""
    given, expected = Counter(_PLAIN_WORD.findall(answer.lower())), Counter(_PLAIN_WORD.findall(reference.lower()))
    shared = sum((given & expected).values())
    total = sum(given.values()) + sum(expected.values())
    return 2 * shared / total if total else 1.0


class _ShortRepr(reprlib.Repr):
    """A repr that truncates before it is built, since a table's cell may be very large."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200


_SHORT_REPR = _ShortRepr()


def enumerated(parts: Sequence[str]) -> str:
    """Join as `a`, `a, and b`, `a, b, and c`."""
    *others, last = parts
    return f"{', '.join(others)}, and {last}" if others else last


def short_repr(value: object, limit: int = 80) -> str:
    """Return a value's Python repr on one line, truncated: for messages."""
    line = " ".join(_SHORT_REPR.repr(value).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def short_quote(text: str, limit: int = 80) -> str:
    """Return a text in quotes on one line, truncated to `limit` characters: for messages."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
