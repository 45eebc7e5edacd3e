"""Error rate: the share of words (or characters) to edit to turn the answers into their references.

- {kind: edit-distance, unit: words}                               # the word error rate
- {kind: edit-distance, unit: words, name: phoneme error rate}     # where each word is a phoneme
- {kind: edit-distance, unit: characters}

    rate = sum of Levenshtein(answer, reference) / sum of the reference's length

over all rows together, so that a long reference weighs more than a short one; above 1 if answers are much too long. An
insertion, a deletion and a substitution cost 1 each. White space is collapsed first. rapidfuzz computes the distance:
exact, bit-parallel, over any hashable items, and without further dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from rapidfuzz.distance import Levenshtein

from stillhouse.evaluation.metrics.base import Floats, ratio
from stillhouse.settings import Settings, parse_options


class EditDistanceOptions(Settings):
    """Options of this metric."""

    unit: Literal["words", "characters"] = Field(default="words", description="words are split at white space")


@dataclass(frozen=True)
class EditDistance:
    """Word or character error rate over all rows, 0 or more."""

    unit: Literal["words", "characters"]
    lower_is_better: bool = True
    percent: bool = True
    digits: int = 1

    @property
    def name(self) -> str:
        """`word error rate` or `character error rate`."""
        return f"{self.unit.removesuffix('s')} error rate"

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """Return the edit distance and the reference's length."""
        written, expected = answer.split(), reference.split()
        if self.unit == "words":
            return float(Levenshtein.distance(written, expected)), float(len(expected))
        return float(Levenshtein.distance(" ".join(written), " ".join(expected))), float(len(" ".join(expected)))

    def score(self, totals: Floats) -> Floats:
        """Return edits / length."""
        return ratio(totals)


def open_metric(options: dict[str, Any]) -> EditDistance:
    """Return the metric with its options checked."""
    return EditDistance(parse_options("evaluate.metrics.edit-distance", options, EditDistanceOptions).unit)
