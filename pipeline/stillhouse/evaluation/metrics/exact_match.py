"""The share of answers that equal their references, character by character.

- exact-match
- {kind: exact-match, ignore_case: true, ignore_punctuation: true}

White space is collapsed first: stripped at both ends, reduced to one space in between.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from stillhouse.evaluation.metrics.base import Floats, ratio
from stillhouse.settings import Settings, parse_options


class ExactMatchOptions(Settings):
    """Options of this metric."""

    ignore_case: bool = Field(default=False, description="compare without regard to case")
    ignore_punctuation: bool = Field(default=False, description="of any script: Unicode categories P*")


@dataclass(frozen=True)
class ExactMatch:
    """Exact match, 0..1."""

    options: ExactMatchOptions
    name: str = "exact match"
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """Return 1 or 0 for equal or not, and 1."""
        return float(self._folded(answer) == self._folded(reference)), 1.0

    def score(self, totals: Floats) -> Floats:
        """Return the mean."""
        return ratio(totals)

    def _folded(self, text: str) -> str:
        if self.options.ignore_case:
            text = text.casefold()
        if self.options.ignore_punctuation:
            text = "".join(letter for letter in text if not unicodedata.category(letter).startswith("P"))
        return " ".join(text.split())


def open_metric(options: dict[str, Any]) -> ExactMatch:
    """Return the metric with its options checked."""
    return ExactMatch(parse_options("evaluate.metrics.exact-match", options, ExactMatchOptions))
