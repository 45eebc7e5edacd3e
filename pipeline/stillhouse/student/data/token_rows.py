"""Rows whose token ids are stored in Parquet, with their soft labels, as training examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.encodings import Encoding, PackedLabels
from stillhouse.dataset.encodings.base import flatten_column
from stillhouse.dataset.reader import CACHE_BYTES, Cache, RowGroup, SplitReader, list_lengths
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.records import SampledLabels, SoftLabels, Split
from stillhouse.student.data.rows import (
    COMPLETION_IDS,
    LABEL_AGAIN,
    PROMPT_IDS,
    DecodedRows,
    Example,
    Ids,
    RowLengths,
    row_bounds,
)
from stillhouse.student.data.token_ids import removed_token, unknown_token
from stillhouse.student.data.vocabulary import labels_for_student
from stillhouse.student.vocabulary_map import VocabularyMap


class TokenRows:
    """Rows that have token ids, with the soft labels of `encoding` or without any."""

    unrendered = 0

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        vocabulary: int,
        encoding: Encoding[SoftLabels | SampledLabels] | None,
        capacity: int = CACHE_BYTES,
        vocabulary_map: VocabularyMap | None = None,
    ) -> None:
        self._encoding = encoding
        self._vocabulary = vocabulary
        self._vocabulary_map = vocabulary_map
        # Where the teacher's tokenizer is known to be the student's, ids past its tokens are padding: vocabulary.py.
        self._padded = dataset.manifest.teacher.tokenizer_sha256 is not None
        self._reader = SplitReader(
            dataset, split, [PROMPT_IDS, COMPLETION_IDS, *(encoding.columns if encoding else ())]
        )
        self._cache = Cache(self.groups, self._decode, capacity)

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        return self._reader.groups

    @property
    def whole(self) -> bool:
        """Whether, by the Parquet footers, every row has token ids."""
        return all(group.statistics[column].nulls == 0 for group in self.groups for column in (0, 1))

    def lengths(self) -> RowLengths:
        """Return the row lengths. Decodes row groups with suspicious footers, to refuse them before any training.

        Raises:
            TrainingError: a row lacks its tokens or labels, or has a token that the student does not know.
        """
        prompt, completion = (np.empty(len(self._reader), dtype=np.int32) for _ in (PROMPT_IDS, COMPLETION_IDS))
        for number, group in enumerate(self.groups):
            if self._must_be_checked(group):
                self._decode(number)
            table = self._reader.read(number, (PROMPT_IDS, COMPLETION_IDS))
            if self._vocabulary_map is not None:  # no footer says which tokens a column has
                for column in (PROMPT_IDS, COMPLETION_IDS):
                    self._student_ids(number, table, column)
            of_group = slice(group.first, group.first + group.rows)
            prompt[of_group], completion[of_group] = (
                list_lengths(table[PROMPT_IDS]),
                list_lengths(table[COMPLETION_IDS]),
            )
        return RowLengths(prompt, completion, np.zeros(len(prompt), dtype=np.bool_))

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group.

        Raises:
            TrainingError: the row group lacks tokens or labels, or has an unknown token, which its footer did not show.
        """
        return self._cache[group].example(row)

    def _must_be_checked(self, group: RowGroup) -> bool:
        for column, facts in zip(self._reader.columns, group.statistics, strict=True):
            if facts.nulls is None or facts.nulls > 0:
                return True
            if not column.endswith("token_ids") or (self._padded and column not in (PROMPT_IDS, COMPLETION_IDS)):
                continue
            if self._vocabulary_map is None and not (facts.highest is not None and facts.highest < self._vocabulary):
                return True
        return False

    def _decode(self, number: int) -> DecodedRows:
        table = self._reader.read(number)
        lengths = list_lengths(table[COMPLETION_IDS])
        columns = self._encoding.columns if self._encoding else ()
        for column in (PROMPT_IDS, COMPLETION_IDS, *columns):
            own = list_lengths(table[column])
            self._refuse(
                number, np.flatnonzero(own < 0), "has no soft labels" if self._encoding else "has no token ids"
            )
            if column in columns:
                self._refuse(number, np.flatnonzero(own != lengths), f"has {column} for another number of tokens")
        return DecodedRows(
            prompts=self._student_ids(number, table, PROMPT_IDS),
            prompt_bounds=row_bounds(list_lengths(table[PROMPT_IDS])),
            completions=self._student_ids(number, table, COMPLETION_IDS),
            bounds=row_bounds(lengths),
            labels=self._labels(number, table, row_bounds(lengths)),
            cut_off=np.zeros(table.num_rows, dtype=np.bool_),
        )

    def _student_ids(self, number: int, table: pa.Table, column: str) -> Ids:
        """Return the token ids of a column as the student numbers them."""
        ids, bounds = flatten_column(table, column), row_bounds(list_lengths(table[column]))
        if self._vocabulary_map is None:
            self._check_tokens(number, ids, bounds)
            return ids
        own = self._vocabulary_map.student_ids(ids)
        if len(removed := np.flatnonzero(own < 0)):
            row = np.searchsorted(bounds, int(removed[0]), side="right") - 1
            raise removed_token(self._id(number, int(row)), int(ids[removed[0]]), len(self._vocabulary_map))
        return own

    def _labels(self, number: int, table: pa.Table, bounds: npt.NDArray[np.int64]) -> PackedLabels | None:
        if self._encoding is None:
            return None
        labels = self._encoding.decode(table)
        if not self._padded:
            self._check_tokens(number, labels.token_ids, labels.offsets[bounds])
        return labels_for_student(labels, self._vocabulary, self._encoding.name, self._vocabulary_map)

    def _check_tokens(self, number: int, ids: Ids, bounds: npt.NDArray[np.int64]) -> None:
        """Refuse token ids outside the vocabulary; row i's ids are between bounds i and i + 1, `bounds` is (rows + 1,)."""
        if len(ids) and (highest := int(ids.max())) >= self._vocabulary:
            row = np.searchsorted(bounds, int(ids.argmax()), side="right") - 1
            raise unknown_token(self._id(number, int(row)), highest, self._vocabulary)

    def _refuse(self, number: int, rows: npt.NDArray[np.int64], problem: str) -> None:
        if len(rows):
            raise TrainingError(f"row {self._id(number, int(rows[0]))} {problem}", fix=LABEL_AGAIN)

    def _id(self, number: int, row: int) -> str:
        return str(self._reader.read(number, ["id"])["id"][row].as_py())
