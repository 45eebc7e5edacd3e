"""Write and read the Parquet files of a shard, and list them for the manifest.

Rejections are written first and completions last, each file atomically: a shard is done when its data file exists and its
metadata holds the shard's key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.dataset.manifest import FileEntry, FileKind, Totals
from stillhouse.dataset.parquet import write_options
from stillhouse.errors import DatasetRefused
from stillhouse.records import Split
from stillhouse.storage.durable import atomic_file, sha256_of_file
from stillhouse.storage.location import Location, RemotePath

SHARD_NAME = re.compile(r"(train|validation)-\d{5,}-of-\d{5,}\.parquet")
_SHARD_KEY = b"stillhouse.shard"


@dataclass(frozen=True)
class ShardFiles:
    """The paths of one shard's files in a version's folder."""

    folder: Location
    split: Split
    index: int
    shard_count: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.shard_count:05d}.parquet"

    @property
    def data(self) -> Location:
        return self.folder / "data" / self.name

    @property
    def rejected(self) -> Location:
        return self.folder / "rejected" / self.name

    def is_done(self, shard_key: str) -> bool:
        """Whether the shard has been written with exactly this key."""
        try:
            with open_parquet(self.data) as parquet:
                metadata = parquet.schema_arrow.metadata or {}
        except FileNotFoundError:
            return False
        return bool(metadata.get(_SHARD_KEY) == shard_key.encode())

    def write(self, completions: pa.Table, rejections: pa.Table, shard_key: str) -> None:
        """Write the completions and, if there are any, the rejections."""
        self.rejected.unlink(missing_ok=True)
        if rejections.num_rows:
            _write(self.rejected, rejections, shard_key)
        _write(self.data, completions, shard_key)

    def entries(self) -> list[FileEntry]:
        """Return the manifest entries of this shard's files."""
        listed: list[tuple[Location, FileKind]] = [(self.data, self.split), (self.rejected, "rejected")]
        return [_entry(path, kind) for path, kind in listed if path.is_file()]


def open_parquet(path: Location) -> DatasetFile:
    """Open a local or remote Parquet file for reading; from a remote one, only the requested ranges are fetched.

    Raises:
        FileNotFoundError: the file does not exist.
        DatasetRefused: the file cannot be read. Later reads of its rows raise it too.
    """
    with _read_errors(path):
        return DatasetFile(path)


class DatasetFile(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file whose read errors name it, so that code writing another file does not report them as write errors."""

    def __init__(self, path: Location) -> None:
        super().__init__(path if isinstance(path, Path) else path.open())
        self._path = path

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*arguments, **options)
        while True:
            with _read_errors(self._path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def read(self, *arguments: Any, **options: Any) -> pa.Table:
        with _read_errors(self._path):
            return super().read(*arguments, **options)

    def read_row_group(self, *arguments: Any, **options: Any) -> pa.Table:
        with _read_errors(self._path):
            return super().read_row_group(*arguments, **options)

    def read_row_groups(self, *arguments: Any, **options: Any) -> pa.Table:
        with _read_errors(self._path):
            return super().read_row_groups(*arguments, **options)


@contextmanager
def _read_errors(path: Location) -> Iterator[None]:
    """Turn read errors of Arrow and the operating system into DatasetRefused with the file's name."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise  # the message names the file already
    except (pa.ArrowException, OSError, ValueError) as error:
        message = " ".join(str(error).split())[:200].rstrip(".")
        raise DatasetRefused(
            f"{path} cannot be read ({message})",
            fix="restore the file from a copy; `stillhouse datasets verify` checks all files",
        ) from None


@dataclass(frozen=True)
class FileCounts:
    """Totals over the files of a version."""

    rows: dict[str, int]
    rejected: dict[str, int]
    totals: Totals


def count_files(folder: Location, entries: Sequence[FileEntry]) -> FileCounts:
    """Count rows, rejection reasons, tokens and cost by reading the files."""
    rows: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    prompt_tokens = completion_tokens = 0
    cost: float | None = None
    for entry in entries:
        columns = ["prompt_tokens", "completion_tokens", "cost_usd"] + (["reason"] if entry.kind == "rejected" else [])
        with open_parquet(folder / entry.path) as parquet:
            table = parquet.read(columns=columns)
        prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
        completion_tokens += pc.sum(table["completion_tokens"]).as_py() or 0
        cost = _sum_known(cost, pc.sum(table["cost_usd"]).as_py())
        if entry.kind == "rejected":
            reasons.update(table["reason"].to_pylist())
        else:
            rows[entry.kind] += entry.rows
    return FileCounts(
        dict(rows),
        dict(sorted(reasons.items())),
        Totals(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost_usd=cost),
    )


def _sum_known(total: float | None, more: float | None) -> float | None:
    """Add two numbers of which either may be None (unknown)."""
    return total if more is None else more if total is None else total + more


def _write(path: Location, table: pa.Table, shard_key: str) -> None:
    keyed = table.replace_schema_metadata({_SHARD_KEY: shard_key.encode()})
    with atomic_file(path) as stream:
        pq.write_table(keyed, stream, **write_options(keyed))


def _entry(path: Location, kind: FileKind) -> FileEntry:
    with open_parquet(path) as parquet:
        rows = parquet.metadata.num_rows
    recorded = path.recorded_sha256() if isinstance(path, RemotePath) else None  # avoids fetching the whole file
    return FileEntry(
        path=f"{path.parent.name}/{path.name}",
        kind=kind,
        rows=rows,
        bytes=path.stat().st_size,
        sha256=recorded or sha256_of_file(path),
    )
