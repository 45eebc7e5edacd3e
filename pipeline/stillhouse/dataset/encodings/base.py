"""The interface of soft-label encodings: their columns on disk, and how labels are encoded and decoded.

    >>> encoding = find_encoding("top-k")
    >>> packed = encoding.decode(next(dataset.batches("train")))    # flat arrays, without a Python object per token
    >>> packed.offsets[:3]                                          # of each position's first entry
    array([ 0,  8, 16])

An encoding is a module in this folder with an object `ENCODING`; its docstring states its error bound. Its columns are
plain Arrow lists, which DuckDB, Polars and any other Parquet reader can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.records import EncodingName, Row

Labels = TypeVar("Labels")


@dataclass(frozen=True)
class PackedLabels:
    """The soft labels of many positions as ragged arrays: position t has the entries offsets[t]:offsets[t + 1].

    Log-probabilities are natural logarithms at temperature 1. The positions of all rows are concatenated; a row without
    labels has none.
    """

    token_ids: npt.NDArray[np.int32]  # (entries,)
    logprobs: npt.NDArray[np.float32]  # (entries,), top-k: the teacher's; sampled: log(count / draws)
    offsets: npt.NDArray[np.int64]  # (positions + 1,), from 0 to entries
    tail_logprob: npt.NDArray[np.float32]  # (positions,), log of the tail mass (tokens not listed); -inf if sampled


class Encoding(Protocol[Labels]):
    """A storage format of soft labels. `Labels` is the in-memory type of one completion's labels."""

    @property
    def name(self) -> EncodingName: ...

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The Arrow fields of its columns: nullable lists with one item per completion token."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the fields: the columns that `decode` needs from a file."""

    @property
    def parquet_encodings(self) -> Mapping[str, str]:
        """Parquet encodings by column, chosen for size; a column not listed uses dictionary encoding."""

    def encode(self, labels: Labels) -> Row:
        """Return the labels of one completion as the values of its columns."""

    def labels_at(self, rows: pa.RecordBatch | pa.Table, index: int) -> Labels | None:
        """Return the labels of the completion in one row, or None if it has none."""

    def decode(self, rows: pa.RecordBatch | pa.Table) -> PackedLabels:
        """Return the labels of all rows, concatenated, directly from Arrow's buffers."""


class PaddedEntries(NamedTuple):
    """The entries of ragged soft labels as arrays of (positions, k), k being the most entries of a position."""

    token_ids: npt.NDArray[np.int32]  # padded with a token id of the caller's
    logprobs: npt.NDArray[np.float32]  # padded with -inf
    present: npt.NDArray[np.bool_]  # False for padding


def pad_entries(
    token_ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], counts: npt.NDArray[np.int64], no_token: int
) -> PaddedEntries:
    """Return ragged entries as padded arrays, which are new.

    Args:
        token_ids: of all positions, concatenated: (entries,).
        logprobs: likewise.
        counts: the number of entries of each position: (positions,).
        no_token: the token id of padding.
    """
    width = int(counts.max(initial=0))
    if len(token_ids) == len(counts) * width:  # every position has as many: nothing to pad, and faster
        shape = (len(counts), width)
        return PaddedEntries(token_ids.reshape(shape).copy(), logprobs.reshape(shape).copy(), np.ones(shape, np.bool_))
    present = np.arange(width, dtype=counts.dtype) < counts[:, None]
    padded = PaddedEntries(
        np.full(present.shape, no_token, np.int32), np.full(present.shape, -np.inf, np.float32), present
    )
    padded.token_ids[present], padded.logprobs[present] = token_ids, logprobs
    return padded


def find_encoding(name: EncodingName) -> Encoding[Any]:
    """Return the encoding with this name, as in `label.soft.encoding` and the manifest.

    Raises:
        KeyError: no encoding has this name.
    """
    if name not in get_args(EncodingName):
        raise KeyError(
            f"the encoding of soft labels {name!r} does not exist: use one of {', '.join(get_args(EncodingName))}"
        )
    encoding: Encoding[Any] = import_module(f"stillhouse.dataset.encodings.{name.replace('-', '_')}").ENCODING
    return encoding


# ----------------------------------------------------------------------------------------------- helpers for encodings


def flatten_column(rows: pa.RecordBatch | pa.Table, column: str) -> npt.NDArray[Any]:
    """Return the items of all lists of a column, concatenated; null lists contribute none."""
    parts = [_as_numpy(chunk.flatten()) for chunk in _chunks(rows, column)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def flatten_nested_lists(
    rows: pa.RecordBatch | pa.Table, column: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Flatten a column of lists of lists into its innermost values and the offsets of the inner lists.

    Returns:
        values (entries,) and offsets (inner lists + 1,). Handles sliced Arrow arrays and null lists.
    """
    parts = [flatten_lists(chunk.flatten()) for chunk in _chunks(rows, column)]
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([offsets[-1] for _, offsets in parts])
    shifted = [offsets[1:] + start for (_, offsets), start in zip(parts, [0, *ends[:-1]], strict=True)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([[0], *shifted]).astype(np.int64)


def flatten_lists(lists: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Flatten an Arrow array of lists into its values and the offsets of the lists; a null list is empty."""
    bounds = lists.offsets.to_numpy()  # of this slice only
    if not lists.null_count:
        return _as_numpy(lists.flatten()), bounds.astype(np.int64) - bounds[:1]
    lengths = np.diff(bounds)
    lengths[lists.is_null().to_numpy(zero_copy_only=False)] = 0
    return _as_numpy(lists.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def list_at(rows: pa.RecordBatch | pa.Table, column: str, index: int) -> Any:
    """Return the list in one row of a column as an Arrow array, or None if it is null."""
    scalar = rows.column(column)[index]
    return scalar.values if scalar.is_valid else None


def _chunks(rows: pa.RecordBatch | pa.Table, column: str) -> list[Any]:
    array = rows.column(column)
    if not isinstance(array, pa.ChunkedArray):
        return [array]
    return list(array.chunks) or [pa.array([], type=array.type)]


def _as_numpy(values: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
