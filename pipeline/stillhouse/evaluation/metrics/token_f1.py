"""Token F1: harmonic mean of word precision and recall, averaged over rows (as in SQuAD, arXiv 1606.05250).

- token-f1

Case, punctuation and word order are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.evaluation.metrics.base import Floats, ratio
from stillhouse.settings import Settings, parse_options
from stillhouse.text import token_f1


class TokenF1Options(Settings):
    """This metric has no options."""


@dataclass(frozen=True)
class TokenF1:
    """Token F1, 0..1."""

    name: str = "token F1"
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """Return the F1, and 1."""
        return token_f1(answer, reference), 1.0

    def score(self, totals: Floats) -> Floats:
        """Return the mean."""
        return ratio(totals)


def open_metric(options: dict[str, Any]) -> TokenF1:
    """Return the metric with its options checked."""
    parse_options("evaluate.metrics.token-f1", options, TokenF1Options)
    return TokenF1()
