"""Pick sample rows of a dataset for display, with the teacher's alternatives at every token.

    >>> from stillhouse.dataset.token_texts import find_token_texts
    >>> samples = pick_samples(dataset, 2, find_token_texts(dataset.manifest))
    >>> len(samples)
    2

The rows are spaced evenly over the dataset, so the same dataset always gives the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.statistics import entropies_of
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.token_texts import TokenTexts
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import SPLITS, Completion, Split

_ALTERNATIVES = 10  # per token, at most
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Alternative:
    """A token that the teacher lists at a position, with its probability."""

    text: str
    probability: float
    chosen: bool


@dataclass(frozen=True)
class Token:
    """A token of a completion, with the teacher's distribution at its position. `entropy` is in nats, see statistics.py."""

    text: str
    probability: float | None  # of this token under the teacher
    entropy: float
    alternatives: tuple[Alternative, ...]  # most likely first
    others: float  # the probability of all tokens that are not in `alternatives`


@dataclass(frozen=True)
class Sample:
    """One row; `tokens` is None if only text is known."""

    split: Split
    completion: Completion
    tokens: tuple[Token, ...] | None


def pick_samples(dataset: Dataset, count: int, texts: TokenTexts) -> list[Sample]:
    """Return up to `count` rows, evenly spaced over the train and validation splits."""
    total = sum(entry.rows for entry in dataset.files(*SPLITS))
    wanted = (
        {total * number // min(count, total) for number in range(min(count, total))} if total and count > 0 else set()
    )
    return list(_samples(dataset, wanted, texts))


def _samples(dataset: Dataset, wanted: set[int], texts: TokenTexts) -> Iterator[Sample]:
    first = 0
    for entry in dataset.files(*SPLITS):
        if any(first <= place < first + entry.rows for place in wanted):
            start = first
            with dataset.open(entry) as parquet:
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                    for place in sorted(wanted & set(range(start, start + batch.num_rows))):
                        row = batch.slice(place - start, 1)
                        yield _sample("validation" if entry.kind == "validation" else "train", row, dataset, texts)
                    start += batch.num_rows
        first += entry.rows


def _sample(split: Split, row: pa.RecordBatch, dataset: Dataset, texts: TokenTexts) -> Sample:
    completion = completion_at(row, 0)
    soft = dataset.manifest.soft
    tokens = (
        _tokens_from_labels(row, completion, soft, texts)
        if soft and completion.trace
        else _tokens_from_logprobs(completion)
    )
    return Sample(split, completion, tokens or None)


def _tokens_from_labels(
    row: pa.RecordBatch, completion: Completion, soft: SoftSettings, texts: TokenTexts
) -> tuple[Token, ...]:
    """Return the tokens of a row with soft labels."""
    assert completion.trace is not None
    labels = find_encoding(soft.encoding).decode(row)
    entropies = entropies_of(labels)
    trace = completion.trace
    tokens = []
    for place in range(min(len(entropies), len(trace.completion_token_ids))):
        part = slice(int(labels.offsets[place]), int(labels.offsets[place + 1]))
        own = int(trace.completion_token_ids[place])
        listed = sorted(
            zip(labels.token_ids[part].tolist(), labels.logprobs[part].tolist(), strict=True), key=lambda one: -one[1]
        )[:_ALTERNATIVES]
        alternatives = _alternatives((texts(id_), logprob, id_ == own) for id_, logprob in listed)
        tokens.append(
            Token(
                texts(own),
                _probability(trace.completion_logprobs[place]) if len(trace.completion_logprobs) > place else None,
                float(entropies[place]),
                alternatives,
                max(0.0, 1.0 - sum(one.probability for one in alternatives)),
            )
        )
    return tuple(tokens)


def _tokens_from_logprobs(completion: Completion) -> tuple[Token, ...]:
    """Return the tokens of a row with an API's token log-probabilities, which name tokens by text."""
    tokens = []
    for one in completion.token_logprobs or ():
        listed = one.top or ((one.token, one.logprob),)
        alternatives = _alternatives((text, logprob, text == one.token) for text, logprob in listed)
        others = max(0.0, 1.0 - sum(alternative.probability for alternative in alternatives))
        masses = [alternative.probability for alternative in alternatives] + [others]
        entropy = -sum(mass * math.log(mass) for mass in masses if mass > 0)
        tokens.append(
            Token(one.token, _probability(one.logprob), max(0.0, entropy), alternatives[:_ALTERNATIVES], others)
        )
    return tuple(tokens)


def _alternatives(listed: Iterable[tuple[str, float, bool]]) -> tuple[Alternative, ...]:
    """Build alternatives from (text, log-probability, is the chosen token); skip invalid log-probabilities."""
    found = ((text, _probability(logprob), chosen) for text, logprob, chosen in listed)
    return tuple(Alternative(text, share, chosen) for text, share, chosen in found if share is not None)


def _probability(logprob: float) -> float | None:
    """Convert a log-probability to a probability; None for NaN or infinity, which servers and imports may contain."""
    logprob = float(logprob)
    return None if math.isnan(logprob) or logprob == math.inf else math.exp(min(logprob, 0.0))
