"""chrF as computed by the package sacrebleu: corpus-level F score of character n-grams, 0..100.

- chrf                                                     # Popović 2015, aclanthology.org/W15-3049
- {kind: chrf, word_order: 2}                              # chrF++, Popović 2017, aclanthology.org/W17-4770

For each order (characters 1..6, and words 1..`word_order`), the n-grams of the answers, of the references and of both are
counted over all rows. Precision and recall are means over the orders, and F weighs recall `beta` times as much as
precision. sacrebleu makes the counts, so the score equals its `corpus_score` bit for bit.
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
    """Options of this metric, with sacrebleu's names."""

    char_order: int = Field(default=6, ge=1, description="longest character n-gram")
    word_order: int = Field(default=0, ge=0, description="2 for chrF++")
    beta: int = Field(default=2, ge=1, description="weight of recall relative to precision")
    lowercase: bool = Field(default=False, description="compare in lower case")


@dataclass(frozen=True)
class Chrf:
    """chrF or chrF++ over all rows, 0..100."""

    counter: CHRF
    lower_is_better: bool = False
    percent: bool = False
    digits: int = 1

    @property
    def name(self) -> str:
        """The name used in papers: chrF, or chrF++ for `word_order` 2."""
        return "chrF" + "+" * self.counter.word_order

    def statistics(self, answer: str, reference: str) -> tuple[float, ...]:
        """Return three counts per order: n-grams of the answer, of the reference, and of both."""
        (counts,) = self.counter._extract_corpus_statistics([answer], [[reference]])
        return tuple(float(count) for count in counts)

    def score(self, totals: Floats) -> Floats:
        """Vectorised version of sacrebleu's `CHRF._compute_f_score`: (..., 3 x orders) -> (...)."""
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
    """Return the mean of `shared / of` over the orders that both sides have; summed in order, as in sacrebleu."""
    shares = np.divide(shared, of, out=np.zeros_like(shared), where=counted)
    total = np.zeros_like(shared[..., 0])
    for order in range(shares.shape[-1]):
        total = total + shares[..., order]
    mean: Floats = np.divide(total, orders, out=np.zeros_like(total), where=orders > 0)
    return mean


def open_metric(options: dict[str, Any]) -> Chrf:
    """Return the metric with its options checked."""
    return Chrf(CHRF(**parse_options("evaluate.metrics.chrf", options, ChrfOptions).model_dump()))
