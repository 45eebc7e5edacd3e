"""Find held-out prompts that are duplicates or near duplicates of training prompts.

Two prompts are compared by the Jaccard similarity of their word sets. Words in at least 80 % of the prompts (and at least
three) belong to the template and are removed first; otherwise all prompts of one template would be near duplicates.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from stillhouse.evaluation.results import Overlap

_WORD = re.compile(r"\w+")
_TEMPLATE_SHARE = 0.8
_NEAR_SHOWN = 50


def find_overlap(held_out: Sequence[str], training: Sequence[str], threshold: float) -> Overlap:
    """Return held-out prompts that are also training prompts, exactly or nearly (similarity >= threshold)."""
    words = _own_words([*dict.fromkeys([*held_out, *training])])
    trained = set(training)
    exact = tuple(text for text in held_out if text in trained)
    candidates = _Index({text: words[text] for text in trained}, threshold)
    near = [
        (text, other, similarity)
        for text in held_out
        for other, similarity in candidates.similar(words[text])
        if other != text
    ]
    near.sort(key=lambda pair: -pair[2])
    return Overlap(len(held_out), len(training), exact, tuple(near[:_NEAR_SHOWN]), threshold)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return |A and B| / |A or B|, 1 for two empty sets."""
    shared = len(one & other)
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


def _own_words(texts: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the words of each text without the template's words; a text with no other words keeps them."""
    words = {text: frozenset(_WORD.findall(text.lower())) for text in texts}
    counts = Counter(word for own in words.values() for word in own)
    template = {word for word, count in counts.items() if count >= max(3, _TEMPLATE_SHARE * len(texts))}
    return {text: own - template or own for text, own in words.items()}


class _Index:
    """Exact similarity search (Jaccard >= threshold) without comparing all pairs.

    Two sets A and B with similarity >= t share at least ceil(t |A|) words, so at least one of the |A| - ceil(t |A|) + 1
    rarest words of A (the prefix filter of set similarity joins: Chaudhuri, Ganti, Kaushik 2006), and their sizes have a
    ratio of t or more. A text without words is similar to none. docs/architecture.md compares this with MinHash LSH.
    """

    def __init__(self, words: dict[str, frozenset[str]], threshold: float) -> None:
        self._words = words
        self._threshold = threshold
        self._holders: defaultdict[str, list[str]] = defaultdict(list)
        for text, own in words.items():
            for word in own:
                self._holders[word].append(text)

    def similar(self, words: frozenset[str]) -> Iterable[tuple[str, float]]:
        """Yield every text of the index with similarity >= threshold, with its similarity."""
        rarest_first = sorted(words, key=lambda word: (len(self._holders.get(word, ())), word))
        prefix = len(words) - _least_shared(len(words), self._threshold) + 1
        candidates = {text for word in rarest_first[:prefix] for text in self._holders.get(word, ())}
        for text in sorted(candidates):
            other = self._words[text]
            if min(len(words), len(other)) / max(len(words), len(other)) < self._threshold:
                continue
            similarity = jaccard(words, other)
            if similarity >= self._threshold:
                yield text, similarity


def _least_shared(size: int, threshold: float) -> int:
    """Return the least number of words that a set of this size shares with one of similarity >= threshold.

    It is ceil(threshold * size), but that product may be rounded up past an integer: 0.56 * 25 > 14.
    """
    shared = math.ceil(threshold * size)
    return shared - 1 if size and (shared - 1) / size >= threshold else shared
