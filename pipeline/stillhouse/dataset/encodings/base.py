"""What an encoding of soft labels is: columns on disk, and the way there and back.

    encoding = find_encoding("top-k")
    row = encoding.encode(labels)                      # one completion -> its columns' values
    packed = encoding.decode(batch)                    # many rows -> flat arrays, no object a token

An encoding is a module in this folder with an object `ENCODING`; its docstring states its error bound. Its columns are
plain Arrow lists, which DuckDB, Polars and anything else that reads Parquet can read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.records import EncodingName, Row

Labels = TypeVar("Labels")


@dataclass(frozen=True)
class PackedLabels:
    """The soft labels of many positions, ragged: position t has the entries offsets[t]:offsets[t + 1].

    Log-probabilities are natural logarithms at temperature 1. The positions are those of all rows, one row behind another;
    a row without labels has none.
    """

    token_ids: npt.NDArray[np.int32]  # (entries,)
    logprobs: npt.NDArray[np.float32]  # (entries,), top-k: the teacher's; sampled: log(count / draws)
    offsets: npt.NDArray[np.int64]  # (positions + 1,), from 0 to entries
    tail_logprob: npt.NDArray[np.float32]  # (positions,), log of the mass of all tokens not listed; -inf for sampled


class Encoding(Protocol[Labels]):
    """One way to keep soft labels. `Labels` is what they are in memory, one completion at a time."""

    @property
    def name(self) -> EncodingName: ...

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The Arrow fields of its columns, all of them nullable lists with one item a completion token."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields' names: all that has to be read from a file for `decode`."""

    @property
    def parquet(self) -> Mapping[str, str]:
        """The Parquet encodings that make its columns small: column -> name; a column not listed gets a dictionary."""

    def encode(self, labels: Labels) -> Row:
        """The labels of one completion as the values of its columns."""

    def restore(self, rows: pa.RecordBatch | pa.Table, index: int) -> Labels | None:
        """The labels of the completion in one row; None where it has none."""

    def decode(self, rows: pa.RecordBatch | pa.Table) -> PackedLabels:
        """The labels of all rows, one behind another, straight out of Arrow's buffers."""


def find_encoding(name: EncodingName) -> Encoding[Any]:
    """An encoding by the name that `label.soft.encoding` and the manifest give it.

    Raises:
        KeyError: there is no such encoding.
    """
    if name not in get_args(EncodingName):
        raise KeyError(
            f"there is no encoding of soft labels {name!r}: it is one of {', '.join(get_args(EncodingName))}"
        )
    encoding: Encoding[Any] = import_module(f"stillhouse.dataset.encodings.{name.replace('-', '_')}").ENCODING
    return encoding


# ------------------------------------------------------------------------------------------------------- for encodings


def list_values(rows: pa.RecordBatch | pa.Table, column: str) -> npt.NDArray[Any]:
    """The items of all lists of a column, one list behind another; null lists have none."""
    parts = [_as_numpy(chunk.flatten()) for chunk in _chunks(rows, column)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def nested_values(rows: pa.RecordBatch | pa.Table, column: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A column of lists of lists as its innermost values, and where each inner list begins and ends among them.

    Returns:
        values (entries,) and offsets (inner lists + 1,). Slices and null lists of the Arrow arrays are respected.
    """
    parts = [ragged(chunk.flatten()) for chunk in _chunks(rows, column)]
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([offsets[-1] for _, offsets in parts])
    shifted = [offsets[1:] + start for (_, offsets), start in zip(parts, [0, *ends[:-1]], strict=True)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([[0], *shifted]).astype(np.int64)


def ragged(lists: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """An Arrow array of lists as its values, and where each list begins and ends among them; a null one is empty."""
    bounds = lists.offsets.to_numpy()  # of this slice
    if not lists.null_count:
        return _as_numpy(lists.flatten()), bounds.astype(np.int64) - bounds[:1]
    lengths = np.diff(bounds)
    lengths[lists.is_null().to_numpy(zero_copy_only=False)] = 0
    return _as_numpy(lists.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def list_at(rows: pa.RecordBatch | pa.Table, column: str, index: int) -> Any:
    """The list in one row of a column as an Arrow array; None where the row has none."""
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
