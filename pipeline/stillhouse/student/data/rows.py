"""Rows of a dataset as training examples: token ids as stored in Parquet, or text that is tokenised.

Both kinds read a row group on the first access to one of its rows, and cache the most recently used row groups
(dataset/reader.py). examples.py indexes them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.columns import prompt_at, record_batch
from stillhouse.dataset.encodings import Encoding, PackedLabels, find_encoding
from stillhouse.dataset.encodings.base import flatten_column
from stillhouse.dataset.reader import CACHE_BYTES, Cache, RowGroup, SplitReader, list_lengths
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TemplateRefused, TrainingError
from stillhouse.models.load import LanguageModel, encode_completion, encode_prompt
from stillhouse.records import Completion, Message, SampledLabels, SoftLabels, Split, is_complete
from stillhouse.student.data.vocabulary import labels_for_student
from stillhouse.student.vocabulary_map import VocabularyMap

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]
_PROMPT, _COMPLETION = "prompt_token_ids", "completion_token_ids"
_LABEL_AGAIN = "label again with label.soft set, or set student.mode to 'black-box'"


@dataclass(frozen=True)
class Example:
    """One row, ready to be collated with others."""

    prompt: Ids  # (prompt time,)
    completion: Ids  # (time,)
    soft: PackedLabels | None  # with a position for each completion token

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class RowLengths:
    """What is known of every row before training starts."""

    prompt: Ids  # (rows,), tokens
    completion: Ids  # (rows,), tokens
    cut_off: npt.NDArray[np.bool_]  # (rows,), read as text that the teacher did not end: no end token is learnt from it


class Rows(Protocol):
    """A source of examples, grouped into row groups."""

    @property
    def groups(self) -> tuple[RowGroup, ...]: ...

    def lengths(self) -> RowLengths:
        """Return the token counts of every row, in one pass that keeps nothing else in memory."""

    @property
    def unrendered(self) -> int:
        """Rows without a token, because the chat template cannot render their prompts; known after `lengths`."""

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group."""


# ------------------------------------------------------------------------------------------------------ rows with tokens


@dataclass(frozen=True)
class _Decoded:
    """A decoded row group: row i's tokens are those between bounds i and i + 1."""

    prompts: Ids
    prompt_bounds: npt.NDArray[np.int64]  # (rows + 1,)
    completions: Ids
    bounds: npt.NDArray[np.int64]  # (rows + 1,), of the completions and of the positions of the labels
    labels: PackedLabels | None
    cut_off: npt.NDArray[np.bool_]  # (rows,), as `RowLengths` has it

    @property
    def lengths(self) -> RowLengths:
        prompt, completion = (np.diff(bounds).astype(np.int32) for bounds in (self.prompt_bounds, self.bounds))
        return RowLengths(prompt, completion, self.cut_off)

    def example(self, row: int) -> Example:
        """Return one row; its arrays are views of the row group's."""
        first, last = self.bounds[row], self.bounds[row + 1]
        prompt = self.prompts[self.prompt_bounds[row] : self.prompt_bounds[row + 1]]
        labels = _slice(self.labels, first, last) if self.labels is not None else None
        return Example(prompt, self.completions[first:last], labels)


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
        self._reader = SplitReader(dataset, split, [_PROMPT, _COMPLETION, *(encoding.columns if encoding else ())])
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
        prompt, completion = (np.empty(len(self._reader), dtype=np.int32) for _ in (_PROMPT, _COMPLETION))
        for number, group in enumerate(self.groups):
            if self._suspicious(group):
                self._decode(number)
            table = self._reader.read(number, (_PROMPT, _COMPLETION))
            if self._vocabulary_map is not None:  # no footer says which tokens a column has
                for column in (_PROMPT, _COMPLETION):
                    self._student_ids(number, table, column)
            of_group = slice(group.first, group.first + group.rows)
            prompt[of_group], completion[of_group] = list_lengths(table[_PROMPT]), list_lengths(table[_COMPLETION])
        return RowLengths(prompt, completion, np.zeros(len(prompt), dtype=np.bool_))

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group.

        Raises:
            TrainingError: the row group lacks tokens or labels, or has an unknown token, which its footer did not show.
        """
        return self._cache[group].example(row)

    def _suspicious(self, group: RowGroup) -> bool:
        for column, facts in zip(self._reader.columns, group.statistics, strict=True):
            if facts.nulls is None or facts.nulls > 0:
                return True
            if not column.endswith("token_ids") or (self._padded and column not in (_PROMPT, _COMPLETION)):
                continue
            if self._vocabulary_map is None and not (facts.highest is not None and facts.highest < self._vocabulary):
                return True
        return False

    def _decode(self, number: int) -> _Decoded:
        table = self._reader.read(number)
        lengths = list_lengths(table[_COMPLETION])
        columns = self._encoding.columns if self._encoding else ()
        for column in (_PROMPT, _COMPLETION, *columns):
            own = list_lengths(table[column])
            self._refuse(
                number, np.flatnonzero(own < 0), "has no soft labels" if self._encoding else "has no token ids"
            )
            if column in columns:
                self._refuse(number, np.flatnonzero(own != lengths), f"has {column} for another number of tokens")
        return _Decoded(
            prompts=self._student_ids(number, table, _PROMPT),
            prompt_bounds=_bounds(list_lengths(table[_PROMPT])),
            completions=self._student_ids(number, table, _COMPLETION),
            bounds=_bounds(lengths),
            labels=self._labels(number, table, _bounds(lengths)),
            cut_off=np.zeros(table.num_rows, dtype=np.bool_),
        )

    def _student_ids(self, number: int, table: pa.Table, column: str) -> Ids:
        """Return the token ids of a column as the student numbers them."""
        ids, bounds = flatten_column(table, column), _bounds(list_lengths(table[column]))
        if self._vocabulary_map is None:
            self._check_tokens(number, ids, bounds)
            return ids
        own = self._vocabulary_map.student_ids(ids)
        if len(removed := np.flatnonzero(own < 0)):
            row = np.searchsorted(bounds, int(removed[0]), side="right") - 1
            raise _removed_token(self._id(number, int(row)), int(ids[removed[0]]), len(self._vocabulary_map))
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
            raise _unknown_token(self._id(number, int(row)), highest, self._vocabulary)

    def _refuse(self, number: int, rows: npt.NDArray[np.int64], problem: str) -> None:
        if len(rows):
            raise TrainingError(f"row {self._id(number, int(rows[0]))} {problem}", fix=_LABEL_AGAIN)

    def _id(self, number: int, row: int) -> str:
        return str(self._reader.read(number, ["id"])["id"][row].as_py())


def _bounds(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def _slice(labels: PackedLabels, first: int, last: int) -> PackedLabels:
    """Return the labels of the positions from `first` up to but not including `last`."""
    offsets = labels.offsets[first : last + 1]
    begin, end = offsets[0], offsets[-1]
    return PackedLabels(
        labels.token_ids[begin:end], labels.logprobs[begin:end], offsets - begin, labels.tail_logprob[first:last]
    )


# -------------------------------------------------------------------------------------------------------- rows of text


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
        columns += (_PROMPT, _COMPLETION) if tokens else ()
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

    def _decode(self, number: int) -> _Decoded:
        table = self._reader.read(number)
        rows = [self._tokenised(table, row) for row in range(table.num_rows)]
        return _Decoded(
            prompts=np.concatenate([np.empty(0, np.int32), *(prompt for prompt, _ in rows)]),
            prompt_bounds=_bounds(np.array([len(prompt) for prompt, _ in rows], dtype=np.int64)),
            completions=np.concatenate([np.empty(0, np.int32), *(completion for _, completion in rows)]),
            bounds=_bounds(np.array([len(completion) for _, completion in rows], dtype=np.int64)),
            labels=None,
            cut_off=np.array([self._is_cut_off(table, row) for row in range(table.num_rows)], dtype=np.bool_),
        )

    def _tokenised(self, table: pa.Table, row: int) -> tuple[Ids, Ids]:
        if self._has_tokens(table, row):
            one = table.slice(row, 1)
            ids = flatten_column(one, _PROMPT), flatten_column(one, _COMPLETION)
            ids = _student_ids(table["id"][row].as_py(), *ids, self._vocabulary_map)
        else:
            text = "".join(message["content"] for message in table["completion"][row].as_py())
            try:
                ids = _token_ids(self._lm, prompt_at(table, row).messages, text, not self._is_cut_off(table, row))
            except TemplateRefused as error:
                return self._skipped(table["id"][row].as_py(), str(error))
        _refuse_unknown(table["id"][row].as_py(), *ids, self._lm)
        return ids

    def _has_tokens(self, table: pa.Table, row: int) -> bool:
        return self._tokens and table[_COMPLETION][row].is_valid

    def _is_cut_off(self, table: pa.Table, row: int) -> bool:
        """Whether a row is read as text that the teacher did not end; stored token ids already show how they end."""
        return not self._has_tokens(table, row) and not is_complete(table["finish_reason"][row].as_py())

    def _skipped(self, id_: str, reason: str) -> tuple[Ids, Ids]:
        """Record a row whose prompt the chat template cannot render, and return no tokens."""
        if not self._refusals:
            log.warning("skipping row %s, and every other row whose prompt the chat template refuses: %s", id_, reason)
        self._refusals[id_] = reason
        return np.empty(0, np.int32), np.empty(0, np.int32)


def example_of(
    row: Completion, lm: LanguageModel, *, soft: bool, by_text: bool, vocabulary_map: VocabularyMap | None = None
) -> Example:
    """Return one completion as token ids of this model; the arguments are those of `read_examples`.

    Raises:
        TrainingError: the row lacks the soft labels that are needed, or has a token that the student does not know.
    """
    trace = None if by_text else row.trace
    if trace is None:
        prompt, completion = _token_ids(lm, row.prompt.messages, row.text, is_complete(row.finish_reason))
    else:
        prompt, completion = _student_ids(row.id, trace.prompt_token_ids, trace.completion_token_ids, vocabulary_map)
    labels = None
    if trace is not None and trace.soft is not None and soft:
        vocabulary = int(lm.model.config.vocab_size)
        labels = labels_for_student(packed(trace.soft), vocabulary, _encoding_of(trace.soft).name, vocabulary_map)
    if soft and labels is None:
        raise TrainingError(f"row {row.id} has no soft labels", fix=_LABEL_AGAIN)
    _refuse_unknown(row.id, prompt, completion, lm)
    return Example(prompt, completion, labels)


def packed(labels: SoftLabels | SampledLabels) -> PackedLabels:
    """Return the soft labels of one completion in the form read from a file."""
    encoding = _encoding_of(labels)
    return encoding.decode(record_batch([encoding.encode(labels)], pa.schema(encoding.fields)))


def _encoding_of(labels: SoftLabels | SampledLabels) -> Encoding[SoftLabels | SampledLabels]:
    return find_encoding("sampled" if isinstance(labels, SampledLabels) else "top-k")


def _token_ids(lm: LanguageModel, messages: Sequence[Message], text: str, ended: bool) -> tuple[Ids, Ids]:
    """Tokenise a row's text; the end token is added only if the teacher `ended` its turn."""
    prompt = np.asarray(encode_prompt(lm.tokenizer, messages), dtype=np.int32)
    return prompt, np.asarray(encode_completion(lm, text, ended=ended), dtype=np.int32)


def _student_ids(id_: str, prompt: Ids, completion: Ids, vocabulary_map: VocabularyMap | None) -> tuple[Ids, Ids]:
    """Return a row's token ids as the student numbers them."""
    if vocabulary_map is None:
        return prompt, completion
    for ids in (prompt, completion):
        if len(removed := ids[vocabulary_map.student_ids(ids) < 0]):
            raise _removed_token(id_, int(removed[0]), len(vocabulary_map))
    return vocabulary_map.student_ids(prompt), vocabulary_map.student_ids(completion)


def _refuse_unknown(id_: str, prompt: Ids, completion: Ids, lm: LanguageModel) -> None:
    vocabulary = int(lm.model.config.vocab_size)
    highest = max(int(ids.max(initial=0)) for ids in (prompt, completion))
    if highest >= vocabulary:
        raise _unknown_token(id_, highest, vocabulary)


def _removed_token(id_: str, token: int, kept: int) -> TrainingError:
    return TrainingError(
        f"row {id_} has the teacher's token {token}, which is not among the student's {kept} tokens: its vocabulary "
        "was cut on rows without it",
        fix="set student.init to {from: teacher, vocabulary: used}, to cut it again on this dataset",
    )


def _unknown_token(id_: str, token: int, vocabulary: int) -> TrainingError:
    return TrainingError(
        f"row {id_} has the token {token}, and the student has only {vocabulary} tokens",
        fix="use a student with the teacher's tokenizer and an embedding row for each of its tokens",
    )
