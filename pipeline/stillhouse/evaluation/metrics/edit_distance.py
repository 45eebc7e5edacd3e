"""The error rate: how many words, or characters, must be changed to make the answers their references.

- {kind: edit-distance, unit: words}                               # the word error rate
- {kind: edit-distance, unit: words, name: phoneme error rate}     # where each word is a phoneme
- {kind: edit-distance, unit: characters}

    rate = sum of Levenshtein(answer, reference) / sum of the reference's length

over all rows together, so that a long reference weighs more than a short one; above 1 where answers are much too long. An
insertion, a deletion and a replacement cost 1 each. White space is collapsed first. The distance is rapidfuzz's: exact,
bit-parallel, over any hashable items, and without dependencies of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from stillhouse.evaluation.metrics.base import Floats, quotient
from stillhouse.settings import Settings, parse_options


class EditDistanceOptions(Settings):
    """Options of this metric."""

    unit: Literal["words", "characters"] = "words"  # words are what white space parts


@dataclass(frozen=True)
class EditDistance:
    """See the module's docstring; from 0."""

    unit: Literal["words", "characters"]
    lower_is_better: bool = True
    percent: bool = True
    digits: int = 1

    @property
    def name(self) -> str:
        """What the rate is called."""
        return f"{self.unit.removesuffix('s')} error rate"

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """The distance, and the reference's length."""
        written, expected = answer.split(), reference.split()
        if self.unit == "words":
            return float(Levenshtein.distance(written, expected)), float(len(expected))
        return float(Levenshtein.distance(" ".join(written), " ".join(expected))), float(len(" ".join(expected)))

    def score(self, totals: Floats) -> Floats:
        """Edits by length."""
        return quotient(totals)


def open_metric(options: dict[str, Any]) -> EditDistance:
    """See the module's docstring."""
    return EditDistance(parse_options("evaluate.metrics.edit-distance", options, EditDistanceOptions).unit)
