"""chrF, as the package sacrebleu counts it: the F score of character n-grams over all rows together, 0..100.

- chrf                                                     # Popović 2015, aclanthology.org/W15-3049
- {kind: chrf, word_order: 2}                              # chrF++, Popović 2017, aclanthology.org/W17-4770

Of every order 1..6 the n-grams of the answers, of the references and of both are counted over all rows; precision and
recall are means over the orders, and F weighs recall `beta` times as much. The counts are sacrebleu's own, so the score is
its `corpus_score`, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from sacrebleu.metrics.chrf import CHRF

from stillhouse.evaluation.metrics.base import Floats
from stillhouse.settings import Settings, parse_options


class ChrfOptions(Settings):
    """Options of this metric, as sacrebleu names them."""

    char_order: int = Field(default=6, ge=1)
    word_order: int = Field(default=0, ge=0)  # 2 for chrF++
    beta: int = Field(default=2, ge=1)
    lowercase: bool = False


@dataclass(frozen=True)
class Chrf:
    """See the module's docstring; 0..100."""

    counter: CHRF
    lower_is_better: bool = False
    percent: bool = False
    digits: int = 1

    @property
    def name(self) -> str:
        """As papers write it."""
        return "chrF" + "+" * self.counter.word_order

    def statistics(self, answer: str, reference: str) -> tuple[float, ...]:
        """Three counts an order: n-grams of the answer, of the reference, of both."""
        (counts,) = self.counter._extract_corpus_statistics([answer], [[reference]])
        return tuple(float(count) for count in counts)

    def score(self, totals: Floats) -> Floats:
        """As sacrebleu's `CHRF._compute_f_score`, over many totals at once: (..., 3 x orders) -> (...)."""
        written, expected, shared = (totals[..., part::3] for part in range(3))  # (..., orders)
        counted = (written > 0) & (expected > 0)
        orders = counted.sum(axis=-1)
        precision = _mean(shared, written, counted, orders)
        recall = _mean(shared, expected, counted, orders)
        factor = self.counter.beta**2
        below = factor * precision + recall
        score: Floats = np.divide((1 + factor) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
        return 100 * score


def _mean(shared: Floats, of: Floats, counted: Any, orders: Any) -> Floats:
    """The mean of shared / of over the orders that both sides have; summed one after another, as sacrebleu does."""
    shares = np.divide(shared, of, out=np.zeros_like(shared), where=counted)
    total = np.zeros_like(shared[..., 0])
    for order in range(shares.shape[-1]):
        total = total + shares[..., order]
    mean: Floats = np.divide(total, orders, out=np.zeros_like(total), where=orders > 0)
    return mean


def open_metric(options: dict[str, Any]) -> Chrf:
    """See the module's docstring."""
    return Chrf(CHRF(**parse_options("evaluate.metrics.chrf", options, ChrfOptions).model_dump()))
