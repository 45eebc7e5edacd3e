"""ROUGE, as the package rouge-score counts it: the F measure, a mean over rows (Lin 2004, aclanthology.org/W04-1013).

- rouge                                                    # ROUGE-L, the longest common subsequence
- {kind: rouge, variant: rouge2, use_stemmer: true}
- {kind: rouge, variant: rougeLsum}                        # sentence by sentence: one a line

Texts are folded to lower case, and everything but a-z and 0-9 parts words: of other scripts nothing is left. For those
take chrf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from stillhouse.evaluation.metrics.base import Floats, quotient
from stillhouse.settings import Settings, parse_options

Variant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


class RougeOptions(Settings):
    """Options of this metric."""

    variant: Variant = "rougeL"
    use_stemmer: bool = False  # Porter's, of English


@dataclass(frozen=True)
class Rouge:
    """See the module's docstring; 0..1."""

    variant: Variant
    scorer: RougeScorer
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    @property
    def name(self) -> str:
        """As papers write it."""
        return self.variant.replace("rouge", "ROUGE-")

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """The F measure, and 1."""
        return float(self.scorer.score(reference, answer)[self.variant].fmeasure), 1.0

    def score(self, totals: Floats) -> Floats:
        """The mean."""
        return quotient(totals)


def open_metric(options: dict[str, Any]) -> Rouge:
    """See the module's docstring."""
    given = parse_options("evaluate.metrics.rouge", options, RougeOptions)
    # The tokenizer is handed over: where RougeScorer makes it, it logs that, and absl then sets up the root logger.
    scorer = RougeScorer([given.variant], tokenizer=DefaultTokenizer(given.use_stemmer))
    return Rouge(given.variant, scorer)
