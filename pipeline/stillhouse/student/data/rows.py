"""The form of training examples, and the protocol of the sources that read them from a dataset's rows.

token_rows.py reads rows whose token ids are stored in Parquet; text_rows.py tokenises rows of text. Both read a row group
on the first access to one of its rows, and cache the most recently used row groups (dataset/reader.py). examples.py
indexes the rows of either source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.reader import RowGroup

Ids = npt.NDArray[np.int32]
PROMPT_IDS, COMPLETION_IDS = "prompt_token_ids", "completion_token_ids"  # columns
LABEL_AGAIN = "label again with label.soft set, or set student.mode to 'black-box'"


@dataclass(frozen=True)
class Written:
    """A completion that the student wrote, for a policy gradient (losses/minillm.py)."""

    logprobs: npt.NDArray[np.float32]  # (time,), of its tokens under the student as training began
    advantages: npt.NDArray[np.float32]  # (time,), nats


@dataclass(frozen=True)
class Example:
    """One row, ready to be collated with others."""

    prompt: Ids  # (prompt time,)
    completion: Ids  # (time,)
    soft: PackedLabels | None  # with a position for each completion token
    written: Written | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class RowLengths:
    """What is known of every row before training starts."""

    prompt: Ids  # (rows,), tokens
    completion: Ids  # (rows,), tokens
    # (rows,), rows of text whose completion is not complete (records.is_complete), so they get no end token
    cut_off: npt.NDArray[np.bool_]
    drawn: npt.NDArray[np.bool_] | None = None  # (rows,), whether a row is used at all; None: every row is

    @property
    def is_drawn(self) -> npt.NDArray[np.bool_]:
        return np.ones(len(self.prompt), dtype=np.bool_) if self.drawn is None else self.drawn


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


@dataclass(frozen=True)
class DecodedRows:
    """The rows of a decoded row group: row i's tokens are those between bounds i and i + 1."""

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


def row_bounds(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each row begins in the joined arrays, and where the last one ends: (rows + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _slice(labels: PackedLabels, first: int, last: int) -> PackedLabels:
    """Return the labels of the positions from `first` up to but not including `last`."""
    offsets = labels.offsets[first : last + 1]
    begin, end = offsets[0], offsets[-1]
    return PackedLabels(
        labels.token_ids[begin:end], labels.logprobs[begin:end], offsets - begin, labels.tail_logprob[first:last]
    )
