"""Rows of text, tokenised with the student's tokenizer and chat template, as training examples."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from stillhouse.dataset.columns import prompt_at, text_of_turns
from stillhouse.dataset.encodings.base import flatten_column
from stillhouse.dataset.reader import Cache, RowGroup, SplitReader
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TemplateRefused
from stillhouse.models.load import LanguageModel
from stillhouse.records import Split, is_complete
from stillhouse.student.data.rows import COMPLETION_IDS, PROMPT_IDS, DecodedRows, Example, Ids, RowLengths, row_bounds
from stillhouse.student.data.token_ids import refuse_unknown_tokens, student_ids, text_token_ids
from stillhouse.student.vocabulary_map import VocabularyMap

log = logging.getLogger(__name__)


class TextRows:
    """Rows of text, tokenised a row group at a time; with `tokens`, rows that have token ids keep them."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        lm: LanguageModel,
        capacity: int,
        *,
        tokens: bool,
        vocabulary_map: VocabularyMap | None = None,
    ) -> None:
        columns = ["id", "prompt", "completion", "reference", "finish_reason"]
        columns += (PROMPT_IDS, COMPLETION_IDS) if tokens else ()
        self._reader = SplitReader(dataset, split, columns)
        self._lm = lm
        self._tokens = tokens
        self._vocabulary_map = vocabulary_map  # applied to the token ids that are kept
        self._refusals: dict[str, str] = {}  # row -> why the chat template cannot render its prompt
        self._cache = Cache(self.groups, self._decode, capacity)

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        return self._reader.groups

    def lengths(self) -> RowLengths:
        """Return the row lengths. Tokenises the whole split once."""
        found = [self._cache[number].lengths for number in range(len(self.groups))]
        none = RowLengths(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.bool_))
        return RowLengths(
            np.concatenate([one.prompt for one in [none, *found]]),
            np.concatenate([one.completion for one in [none, *found]]),
            np.concatenate([one.cut_off for one in [none, *found]]),
        )

    @property
    def unrendered(self) -> int:
        """Rows without a token, because the chat template cannot render their prompts; known after `lengths`."""
        return len(self._refusals)

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group."""
        return self._cache[group].example(row)

    def _decode(self, number: int) -> DecodedRows:
        table = self._reader.read(number)
        rows = [self._tokenised(table, row) for row in range(table.num_rows)]
        return DecodedRows(
            prompts=np.concatenate([np.empty(0, np.int32), *(prompt for prompt, _ in rows)]),
            prompt_bounds=row_bounds(np.array([len(prompt) for prompt, _ in rows], dtype=np.int64)),
            completions=np.concatenate([np.empty(0, np.int32), *(completion for _, completion in rows)]),
            bounds=row_bounds(np.array([len(completion) for _, completion in rows], dtype=np.int64)),
            labels=None,
            cut_off=np.array([self._is_cut_off(table, row) for row in range(table.num_rows)], dtype=np.bool_),
        )

    def _tokenised(self, table: pa.Table, row: int) -> tuple[Ids, Ids]:
        if self._has_tokens(table, row):
            one = table.slice(row, 1)
            ids = flatten_column(one, PROMPT_IDS), flatten_column(one, COMPLETION_IDS)
            ids = student_ids(table["id"][row].as_py(), *ids, self._vocabulary_map)
        else:
            text = text_of_turns(table["completion"][row].as_py())
            try:
                ids = text_token_ids(self._lm, prompt_at(table, row).messages, text, not self._is_cut_off(table, row))
            except TemplateRefused as error:
                return self._skipped(table["id"][row].as_py(), str(error))
        refuse_unknown_tokens(table["id"][row].as_py(), *ids, self._lm)
        return ids

    def _has_tokens(self, table: pa.Table, row: int) -> bool:
        return self._tokens and table[COMPLETION_IDS][row].is_valid

    def _is_cut_off(self, table: pa.Table, row: int) -> bool:
        """Whether a row is read as text that the teacher did not end; stored token ids already show how they end."""
        return not self._has_tokens(table, row) and not is_complete(table["finish_reason"][row].as_py())

    def _skipped(self, id_: str, reason: str) -> tuple[Ids, Ids]:
        """Record a row whose prompt the chat template cannot render, and return no tokens."""
        if not self._refusals:
            log.warning("skipping row %s, and every other row whose prompt the chat template refuses: %s", id_, reason)
        self._refusals[id_] = reason
        return np.empty(0, np.int32), np.empty(0, np.int32)
