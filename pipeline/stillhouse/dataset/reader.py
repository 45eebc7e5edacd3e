"""Random access to the rows of a split, one row group at a time.

    >>> rows = SplitReader(dataset, "train", ["completion_token_ids"])
    >>> rows.groups[0].first                         # index of its first row in the split
    0
    >>> rows.read(0).column_names                    # its table, with those columns only
    ['completion_token_ids']

Opening reads the Parquet footers and no rows. `Cache` is an LRU cache of decoded row groups, bounded in bytes;
`cache_windows` groups row groups so that each window fits into the cache: when rows are drawn at random from one window
after another, each row group is decoded once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.dataset.manifest import FileEntry
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.records import Split

CACHE_BYTES = 256 << 20  # of decoded row groups in one reader's cache
_NUMBER_BYTES = 4  # of a decoded number in memory: int32 and float32

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """Footer statistics of one column of a row group; None if the writer did not store them."""

    nulls: int | None  # missing values, including null and empty lists
    highest: Any | None  # the largest value


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A Parquet row group: rows that are stored and decoded together."""

    entry: FileEntry
    number: int  # in its file
    first: int  # index of its first row in the split
    rows: int
    nbytes: int  # of the reader's columns in memory, estimated from the footer: four bytes per number; plain text
    statistics: tuple[ColumnStatistics, ...]  # one per column of the reader, in order


class SplitReader:
    """Some columns of the rows of one split. No file stays open between calls."""

    def __init__(self, dataset: Dataset, split: Split, columns: Sequence[str]) -> None:
        """Read the footers.

        Raises:
            DatasetRefused: a file lacks one of the columns, or its number of rows is not the one in the manifest.
        """
        self._dataset = dataset
        self.columns = tuple(columns)
        self.groups = tuple(self._read_footers(split))
        self._rows = sum(group.rows for group in self.groups)

    def __len__(self) -> int:
        return self._rows

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read row group `number` of the split, with the reader's columns or the given ones; the result is not cached."""
        group = self.groups[number]
        chosen = list(self.columns if columns is None else columns)
        with self._open(group.entry) as parquet:
            table: pa.Table = parquet.read_row_group(group.number, columns=chosen)
        return table.select(chosen)

    @contextmanager
    def _open(self, entry: FileEntry) -> Iterator[pq.ParquetFile]:
        parquet = self._dataset.open(entry)
        try:
            yield parquet
        finally:
            parquet.close(force=True)  # also closes the stream of a remote file

    def _read_footers(self, split: Split) -> Iterator[RowGroup]:
        first = 0
        for entry in self._dataset.files(split):
            with self._open(entry) as parquet:
                footer = parquet.metadata
            if footer.num_rows != entry.rows:
                raise DatasetRefused(
                    f"{entry.path} of dataset {self._dataset.manifest.label} has {footer.num_rows} rows, and the manifest "
                    f"lists {entry.rows}",
                    fix="restore the file from a copy, or label again",
                )
            leaves = self._leaves(footer, entry)
            for number in range(footer.num_row_groups):
                part = footer.row_group(number)
                chunks = [[part.column(leaf) for leaf in each] for each in leaves]
                nbytes = sum(_bytes_in_memory(chunk) for each in chunks for chunk in each)
                statistics = tuple(_column_statistics(each) for each in chunks)
                yield RowGroup(entry, number, first, part.num_rows, nbytes, statistics)
                first += part.num_rows

    def _leaves(self, footer: pq.FileMetaData, entry: FileEntry) -> list[list[int]]:
        """Return the footer indexes of each column's leaf columns: a list of messages has two, role and content."""
        indexes: dict[str, list[int]] = {}
        for index in range(footer.num_columns):
            indexes.setdefault(footer.schema.column(index).path.partition(".")[0], []).append(index)
        missing = [column for column in self.columns if column not in indexes]
        if missing:
            raise DatasetRefused(
                f"{entry.path} of dataset {self._dataset.manifest.label} has no column {missing[0]}",
                fix="label again, or import it again",
            )
        return [indexes[column] for column in self.columns]


def _bytes_in_memory(chunk: pq.ColumnChunkMetaData) -> int:
    if chunk.physical_type == "BYTE_ARRAY":
        return int(max(chunk.total_uncompressed_size, _NUMBER_BYTES * chunk.num_values))
    return int(_NUMBER_BYTES * chunk.num_values)


def _column_statistics(chunks: Sequence[pq.ColumnChunkMetaData]) -> ColumnStatistics:
    """Return the statistics of a column with one leaf; unknown (None) for a column with several."""
    found = chunks[0].statistics if len(chunks) == 1 else None
    if found is None:
        return ColumnStatistics(None, None)
    return ColumnStatistics(
        nulls=found.null_count if found.has_null_count else None, highest=found.max if found.has_min_max else None
    )


def list_lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the length of each row's list, from its offsets: (rows,); -1 for a null list."""
    lengths = pc.fill_null(pc.list_value_length(column), -1)
    return lengths.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def cache_windows(groups: Sequence[RowGroup], order: Iterable[int], capacity: int = CACHE_BYTES) -> Iterator[list[int]]:
    """Yield row groups in the given order, in windows that fit into a `Cache` of this capacity, at least one group each."""
    window: list[int] = []
    size = 0
    for number in order:
        if window and size + groups[number].nbytes > capacity:
            yield window
            window, size = [], 0
        window.append(number)
        size += groups[number].nbytes
    if window:
        yield window


class Cache(Generic[Value]):
    """An LRU cache of decoded row groups: at most `capacity` bytes, or the one in use if it is larger.

    Sizes are `RowGroup.nbytes`. The least recently used row groups are evicted before the next one is decoded.
    """

    def __init__(self, groups: Sequence[RowGroup], decode: Callable[[int], Value], capacity: int = CACHE_BYTES) -> None:
        self._groups = groups
        self._decode = decode
        self._capacity = capacity
        self._cached: OrderedDict[int, Value] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, number: int) -> Value:
        """Return row group `number`, from the cache or decoded now."""
        if number in self._cached:
            self._cached.move_to_end(number)
            return self._cached[number]
        needed = self._groups[number].nbytes
        while self._cached and self._bytes + needed > self._capacity:
            evicted, _ = self._cached.popitem(last=False)
            self._bytes -= self._groups[evicted].nbytes
        self._cached[number] = self._decode(number)
        self._bytes += needed
        return self._cached[number]

    def __len__(self) -> int:
        """Return how many row groups are cached."""
        return len(self._cached)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the cached row groups: another process starts with an empty cache."""
        return self.__dict__ | {"_cached": OrderedDict(), "_bytes": 0}
