"""ROUGE as computed by the package rouge-score: mean F measure over rows (Lin 2004, aclanthology.org/W04-1013).

- rouge                                                    # ROUGE-L, the longest common subsequence
- {kind: rouge, variant: rouge2, use_stemmer: true}
- {kind: rouge, variant: rougeLsum}                        # sentence by sentence: one per line

Texts are lower-cased, and words are runs of a-z and 0-9: text in other scripts has no words at all. Use chrf for those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from stillhouse.evaluation.metrics.base import Floats, ratio
from stillhouse.settings import Settings, parse_options

Variant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


class RougeOptions(Settings):
    """Options of this metric."""

    variant: Variant = Field(
        default="rougeL", description="n-grams of one or two words, or the longest common subsequence"
    )
    use_stemmer: bool = Field(default=False, description="Porter stemmer, for English")


@dataclass(frozen=True)
class Rouge:
    """One ROUGE variant, 0..1."""

    variant: Variant
    scorer: RougeScorer
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    @property
    def name(self) -> str:
        """The name used in papers, such as ROUGE-L."""
        return self.variant.replace("rouge", "ROUGE-")

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        """Return the F measure, and 1."""
        return float(self.scorer.score(reference, answer)[self.variant].fmeasure), 1.0

    def score(self, totals: Floats) -> Floats:
        """Return the mean."""
        return ratio(totals)


def open_metric(options: dict[str, Any]) -> Rouge:
    """Return the metric with its options checked."""
    given = parse_options("evaluate.metrics.rouge", options, RougeOptions)
    # Pass a tokenizer: RougeScorer logs when it creates one, and absl then configures the root logger.
    scorer = RougeScorer([given.variant], tokenizer=DefaultTokenizer(given.use_stemmer))
    return Rouge(given.variant, scorer)
