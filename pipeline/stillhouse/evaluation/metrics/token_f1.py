"""Token F1: harmonic mean of word precision and recall, a mean over rows (as in SQuAD, arXiv 1606.05250).

- token-f1

Case and punctuation are put aside, and so is the order of the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.evaluation.metrics.base import Floats, quotient
from stillhouse.settings import Settings, parse_options
from stillhouse.text import token_f1


class TokenF1Options(Settings):
    """This metric has no options."""


@dataclass(frozen=True)
class TokenF1:
    """See the module's docstring; 0..1."""

    name: str = "token F1"
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """The F1, and 1."""
        return token_f1(answer, reference), 1.0

    def score(self, totals: Floats) -> Floats:
        """The mean."""
        return quotient(totals)


def open_metric(options: dict[str, Any]) -> TokenF1:
    """See the module's docstring."""
    parse_options("evaluate.metrics.token-f1", options, TokenF1Options)
    return TokenF1()
