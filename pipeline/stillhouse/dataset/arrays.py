"""Soft labels as arrays, one completion at a time: for notebooks and other programs.

    >>> labels = next(soft_labels(dataset, "train"))
    >>> ids, logprobs = labels.sparse()           # (positions, k) each
    >>> ids.shape == logprobs.shape, ids.shape[1]
    (True, 8)
    >>> labels.dense().shape[1]                   # (positions, vocabulary)
    64

Log-probabilities are natural logarithms at temperature 1, as the teacher gave them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.dataset.encodings import PackedLabels, find_encoding, pad_entries
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.records import Split

NO_TOKEN = -1  # pads `sparse`


@dataclass(frozen=True)
class RowLabels(PackedLabels):
    """The soft labels of one completion; position t has the entries offsets[t]:offsets[t + 1]."""

    id: str  # of the row
    completion_token_ids: npt.NDArray[np.int32]  # (positions,)
    vocabulary_size: int | None  # the teacher's

    def sparse(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return token ids and log-probabilities, (positions, k) each, k being the most entries of a position.

        A position with fewer entries is padded with the token id -1 and the log-probability -inf.
        """
        padded = pad_entries(self.token_ids, self.logprobs, np.diff(self.offsets), NO_TOKEN)
        return padded.token_ids, padded.logprobs

    def dense(self, vocabulary_size: int | None = None, *, spread_tail: bool = False) -> npt.NDArray[np.float32]:
        """Return probabilities, (positions, vocabulary).

        Args:
            vocabulary_size: number of columns; None: the teacher's vocabulary.
            spread_tail: whether the tail mass is spread evenly over the tokens that are not listed. Otherwise these have
                probability 0, and a row sums to 1 less the tail mass.

        Raises:
            DatasetRefused: the vocabulary size is not known, or smaller than a token id.
        """
        size = vocabulary_size or self.vocabulary_size
        if size is None:
            raise DatasetRefused("the size of the teacher's vocabulary is not known", fix="pass vocabulary_size")
        if self.token_ids.max(initial=-1) >= size:
            raise DatasetRefused(
                f"the labels have the token id {self.token_ids.max()}",
                setting="vocabulary_size",
                value=size,
                fix="pass a larger one",
            )
        counts = np.diff(self.offsets)
        found = np.zeros((len(counts), size), np.float32)
        positions = np.repeat(np.arange(len(counts)), counts)
        if spread_tail:
            unlisted = size - counts
            share = np.divide(np.exp(self.tail_logprob), unlisted, out=np.zeros(len(counts)), where=unlisted > 0)
            found += share[:, None].astype(np.float32)
        found[positions, self.token_ids] = np.exp(self.logprobs)
        return found


def soft_labels(dataset: Dataset, split: Split = "train") -> Iterator[RowLabels]:
    """Yield the soft labels of each row of a split, in the dataset's order; rows without labels are left out.

    Raises:
        DatasetRefused: the dataset has text alone.
    """
    manifest = dataset.manifest
    if manifest.soft is None:
        raise DatasetRefused(
            f"dataset {manifest.label} has no soft labels: it was labelled without label.soft",
            fix="label again with it",
        )
    encoding = find_encoding(manifest.soft.encoding)
    for batch in dataset.batches(split):
        for index in range(batch.num_rows):
            row = batch.slice(index, 1)
            packed = encoding.decode(row)
            if len(packed.tail_logprob):
                yield RowLabels(
                    **vars(packed),
                    id=row.column("id")[0].as_py(),
                    completion_token_ids=np.array(row.column("completion_token_ids")[0].as_py(), np.int32),
                    vocabulary_size=manifest.teacher.vocabulary_size,
                )
