"""Statistics over the rows of a dataset: histograms of completion length and of the teacher's entropy.

    >>> found = measure_dataset(dataset)
    >>> found.lengths.median > 0, found.entropies.mean > 0
    (True, True)

The entropy at a position is that of the stored outcomes, in nats. With top-k labels these are the k tokens and the tail:
k + 1 outcomes. Merging outcomes can only lower entropy, so this is a lower bound of the teacher's entropy. With sampled
labels it is the entropy of the drawn frequencies, which is also too low on average.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.dataset.encodings import PackedLabels, find_encoding
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset
from stillhouse.records import SPLITS

_BINS = 16  # at most
_FINE = 0.01  # nats: width of the bins in which entropies are first counted
_POSITIONS = 5_000_000  # entropies are measured until this many positions are read
_BATCH_ROWS = 256
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Counts per bin: `counts[i]` values x have `edges[i]` <= x < `edges[i + 1]`."""

    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    open_end: bool  # the last bin also counts all values above its upper edge
    values: int
    mean: float
    median: float
    p95: float
    highest: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of a dataset; `lengths` is None without rows, `entropies` is None without soft labels."""

    lengths: Histogram | None
    entropies: Histogram | None
    rows_measured: int  # rows whose entropies were measured


def measure_dataset(dataset: Dataset) -> Statistics:
    """Measure the lengths of all completions, and the entropies at the first five million positions."""
    entropies, rows = _entropies(dataset) if dataset.manifest.soft else (None, 0)
    return Statistics(_lengths(dataset), entropies, rows)


def entropies_of(labels: PackedLabels) -> npt.NDArray[np.float64]:
    """Return the entropy of the stored outcomes at every position: (positions,), in nats."""
    ends = np.concatenate([[0.0], np.cumsum(_entropy_terms(labels.logprobs))])[labels.offsets]
    found: npt.NDArray[np.float64] = np.maximum(np.diff(ends) + _entropy_terms(labels.tail_logprob), 0.0)
    return found


def entropy_note(manifest: Manifest) -> str:
    """Explain what the entropies of this dataset measure."""
    if manifest.soft is not None and manifest.soft.encoding == "sampled":
        return f"of the frequencies of {manifest.soft.draws} draws: on average lower than the teacher's entropy"
    k = manifest.soft.k if manifest.soft else None
    return f"over k + 1 outcomes ({k} tokens, and all others together): a lower bound of the teacher's entropy"


def histogram(values: Numbers, counts: npt.NDArray[np.int64], unit: str, *, whole: bool) -> Histogram | None:
    """Return a histogram of values that each occur `counts` times, or None if there are none.

    Edges are round numbers. A long tail is collected in the last bin, so that the other bins stay narrow.
    """
    if not counts.sum():
        return None

    def quantile(share: float) -> float:
        return float(np.quantile(values, share, weights=counts, method="inverted_cdf"))

    highest = float(values.max())
    top = highest if highest <= 2 * quantile(0.99) else quantile(0.99)
    step = _round_step(top / _BINS, whole=whole)
    bins = math.floor(top / step + 1e-9) + 1
    places = np.minimum(np.floor(values / step + 1e-9).astype(np.int64), bins - 1)
    return Histogram(
        unit=unit,
        edges=tuple(round(step * number, 6) for number in range(bins + 1)),
        counts=tuple(int(count) for count in np.bincount(places, weights=counts, minlength=bins)),
        open_end=highest >= step * bins,
        values=int(counts.sum()),
        mean=float(np.average(values, weights=counts)),
        median=quantile(0.5),
        p95=quantile(0.95),
        highest=highest,
    )


# --------------------------------------------------------------------------------------------------------------- helpers


def _lengths(dataset: Dataset) -> Histogram | None:
    """Measure lengths in the teacher's tokens, or in characters if it counted no tokens."""
    for column, unit in (("completion_tokens", "tokens"), ("completion", "characters")):
        found: Counter[int] = Counter()
        for batch in _batches(dataset, [column]):
            lengths = batch.column(column).drop_null()
            if unit == "characters":
                lengths = pc.utf8_length(lengths.flatten().field("content"))
            for one in pc.value_counts(lengths).to_pylist():
                found[one["values"]] += one["counts"]
        if found:
            return histogram(
                np.array(list(found), np.float64), np.array(list(found.values()), np.int64), unit, whole=True
            )
    return None


def _entropies(dataset: Dataset) -> tuple[Histogram | None, int]:
    assert dataset.manifest.soft is not None
    encoding = find_encoding(dataset.manifest.soft.encoding)
    fine = np.zeros(1, np.int64)
    rows = 0
    for batch in _batches(dataset, list(encoding.columns)):
        places = np.floor(entropies_of(encoding.decode(batch)) / _FINE).astype(np.int64)
        more = np.bincount(places, minlength=len(fine))
        more[: len(fine)] += fine
        fine, rows = more, rows + batch.num_rows
        if fine.sum() >= _POSITIONS:
            break
    occupied = np.flatnonzero(fine)
    return histogram(np.asarray((occupied + 0.5) * _FINE, np.float64), fine[occupied], "nats", whole=False), rows


def _batches(dataset: Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for entry in dataset.files(*SPLITS):
        with dataset.open(entry) as parquet:
            yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns)


def _entropy_terms(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return -p log p, which is 0 for p = 0."""
    logs = logprobs.astype(np.float64)
    finite = np.isfinite(logs)
    return np.where(finite, -np.exp(logs) * np.where(finite, logs, 0.0), 0.0)


def _round_step(least: float, *, whole: bool) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, ... (and their decimal fractions) that is at least `least`."""
    if whole and least <= 1:
        return 1.0
    if least <= 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(least))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= least * (1 - 1e-9))
