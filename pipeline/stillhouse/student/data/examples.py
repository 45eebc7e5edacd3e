"""The rows of a dataset as training examples, by index, with only a few row groups in memory.

    train = read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=2048)
    train[17]                                        # prompt and completion token ids, soft labels
    for window in train.windows(random): ...         # indices whose row groups fit into memory together

Rows with token ids are read from Parquet as arrays; the text columns are then not read at all. Rows of text are tokenised
on access, with the student's own tokenizer and chat template.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.reader import CACHE_BYTES, cache_windows
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.models.load import LanguageModel
from stillhouse.records import Split
from stillhouse.student.data.rows import Example, Rows
from stillhouse.student.data.text_rows import TextRows
from stillhouse.student.data.token_rows import TokenRows
from stillhouse.student.vocabulary_map import VocabularyMap


class Examples:
    """The rows of a split that a student can learn from.

    Left out are: `too_long` rows of more than `max_length` tokens, `empty` rows without a completion token, and
    `unrendered` rows without any token, whose prompt the chat template cannot render.

    In memory are `lengths` and an index, 12 bytes per row, and the most recently used row groups: `capacity` bytes, or one
    row group if that is more.
    """

    def __init__(self, rows: Rows, max_length: int, capacity: int = CACHE_BYTES) -> None:
        self._rows = rows
        self._capacity = capacity
        found = rows.lengths()
        lengths = found.prompt + found.completion
        drawn, fits, has_completion = found.is_drawn, lengths <= max_length, found.completion > 0
        self._kept = np.flatnonzero(drawn & fits & has_completion)
        self.lengths: npt.NDArray[np.int32] = lengths[self._kept]  # tokens of each example
        self.too_long = int((drawn & ~fits).sum())
        self.unrendered = rows.unrendered
        self.empty = int((drawn & fits & ~has_completion).sum()) - self.unrendered
        self.cut_off = int(found.cut_off[self._kept].sum())  # examples without an end token: the teacher did not end
        self._firsts = np.array([group.first for group in rows.groups], dtype=np.int64)  # row of the split
        self._bounds = np.searchsorted(self._kept, [*self._firsts, len(lengths)])  # index of each group's first example

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        row = int(self._kept[index])
        group = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._rows.example(group, row - int(self._firsts[group]))

    def windows(self, random: np.random.Generator, *, begin_with: int | None = None) -> Iterator[npt.NDArray[np.int64]]:
        """Yield all indices, each once, in windows of as many randomly ordered row groups as fit into memory together.

        Args:
            random: draws the order of the row groups; within a window indices are in the order of the dataset.
            begin_with: index of an example whose row group comes first.
        """
        order = random.permutation(len(self._firsts))
        if begin_with is not None:
            first = np.searchsorted(self._firsts, self._kept[begin_with], side="right") - 1
            order = np.concatenate([[first], order[order != first]])
        for window in cache_windows(self._rows.groups, order.tolist(), self._capacity):
            yield np.concatenate([np.arange(self._bounds[group], self._bounds[group + 1]) for group in window])


def read_examples(
    dataset: Dataset,
    split: Split,
    lm: LanguageModel,
    *,
    soft: bool,
    by_text: bool,
    max_length: int,
    capacity: int = CACHE_BYTES,
    vocabulary_map: VocabularyMap | None = None,
) -> Examples:
    """Return the examples of a split, at most `max_length` tokens long; the other arguments are those of `open_rows`."""
    rows = open_rows(dataset, split, lm, soft=soft, by_text=by_text, capacity=capacity, vocabulary_map=vocabulary_map)
    return Examples(rows, max_length, capacity)


def open_rows(
    dataset: Dataset,
    split: Split,
    lm: LanguageModel,
    *,
    soft: bool,
    by_text: bool,
    capacity: int = CACHE_BYTES,
    vocabulary_map: VocabularyMap | None = None,
) -> Rows:
    """Return the rows of a split.

    Args:
        dataset: a dataset of any size.
        split: the split to read.
        lm: the model that learns from the rows.
        soft: whether to read soft labels too.
        by_text: whether to tokenise the text again, because the rows' token ids have another tokenizer or layout.
        capacity: bytes of decoded rows kept in memory (see `Examples`).
        vocabulary_map: map from the teacher's tokens to those of a student with a part of them.

    Raises:
        DatasetRefused: a file differs from what the manifest says.
        TrainingError: a row lacks the soft labels that are needed, or has a token that the student does not know.
    """
    settings = dataset.manifest.soft
    vocabulary = int(lm.model.config.vocab_size)
    if soft and (settings is None or by_text):
        raise TrainingError(
            f"dataset {dataset.manifest.label} has no soft labels that this student could learn from",
            fix="label again with label.soft set, or set student.mode to 'black-box'",
        )
    if settings is None or by_text:
        return TextRows(dataset, split, lm, capacity, tokens=False)
    if soft:
        return TokenRows(dataset, split, vocabulary, find_encoding(settings.encoding), capacity, vocabulary_map)
    tokens = TokenRows(dataset, split, vocabulary, None, capacity, vocabulary_map)
    if tokens.whole:
        return tokens
    return TextRows(dataset, split, lm, capacity, tokens=True, vocabulary_map=vocabulary_map)
