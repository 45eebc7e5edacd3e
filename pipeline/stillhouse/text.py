"""The words of a text, and how much two texts share.

    words("It’s 3.5 km, said Ada.")  ->  ["its", "3.5", "km", "said", "ada"]

Case, the form of quotes and dashes, white space and sentence marks are folded away. What changes a meaning stays: `5 * 3`
is not `5 / 3`, and `-1` is not `1`.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections import Counter

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_QUOTES = re.compile("[\"'`´‘’‚‛“”„«»‹›]")
_MARKS = re.compile(r"[.,:](?!\d)|[;!?…¿¡。、]")
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and ideographs: written without spaces
_WORD = re.compile(rf"(?<!\w)-?\d+(?:[.,:]\d+)*|[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
_PLAIN_WORD = re.compile(r"\w+")
_BARE_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")

GRAM = 4  # words
REPEATED_SHARE = 0.2  # of a text's n-grams: from here on it repeats itself


def words(text: str) -> list[str]:
    """The words of a text in their order, folded (Unicode NFKC and case); a number, a sign, an ideograph is a word."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    return _WORD.findall(_MARKS.sub(" ", _QUOTES.sub("", folded)))


def bare_words(text: str) -> list[str]:
    """The words of a text in their order, without case, quotes or any sign; an ideograph or a kana is a word of its own."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _BARE_WORD.findall(_QUOTES.sub("", folded))


def repeated_share(text: str) -> float:
    """The share of a text's word n-grams that occurred earlier in it, 0..1; 0 where it is too short to have any.

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
    """Every run of `size` words of a text; a shorter text is one run."""
    own = words(text)
    return {" ".join(own[start : start + size]) for start in range(max(1, len(own) - size + 1))}


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall, case and punctuation aside (as in SQuAD, arXiv 1606.05250): 0..1."""
    written, expected = Counter(_PLAIN_WORD.findall(answer.lower())), Counter(_PLAIN_WORD.findall(reference.lower()))
    shared = sum((written & expected).values())
    total = sum(written.values()) + sum(expected.values())
    return 2 * shared / total if total else 1.0


class _Shown(reprlib.Repr):
    """Python's own words for a value, cut before they are made: a table's cell may be as large as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200


_SHOWN = _Shown()


def shown_value(value: object, limit: int = 80) -> str:
    """A value as Python writes it, on one line and cut short: for messages."""
    line = " ".join(_SHOWN.repr(value).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shortened(text: str, limit: int = 80) -> str:
    """A text in quotes on one line, cut to `limit` characters: for messages."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
