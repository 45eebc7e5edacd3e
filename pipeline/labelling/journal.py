"""The journal: where an answer is durable before it counts.

One SQLite file a dataset, beside its versions, keyed by request: whatever happens to shards, prompt files or the process,
an answer in here is never asked for again. A body is one Arrow record batch, in the columns that the shard's Parquet file
will have, so that nothing is converted twice. Rows leave the journal when the manifest that contains them is on disk.

The journal belongs to the dataset rather than to one shard (see docs/labelling.md): an edited prompt file moves prompts
from shard to shard, and their answers must be found wherever they were.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa

from pipeline.records import (
    Completion,
    Rejection,
    completion_row,
    completion_schema,
    record_batch,
    rejection_row,
    rejection_schema,
)

FILE_NAME = "journal.sqlite"
_CREATE = (
    "CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID"
)
_SELECT_AT_ONCE = 500  # SQLite's bound on variables in one statement is far above

Kind = Literal["completion", "rejection"]


@dataclass(frozen=True)
class Entry:
    """One answered request."""

    id: str
    kind: Kind
    batch: pa.RecordBatch  # one row


class Journal:
    """Opened by the one writer of a dataset (`durable.sole_writer`). Usable as a context manager."""

    def __init__(self, folder: Path, *, soft: bool) -> None:
        self._file = folder / FILE_NAME
        self._soft = soft
        self._schemas = {"completion": completion_schema(soft=soft), "rejection": rejection_schema(soft=soft)}
        self._connection = sqlite3.connect(self._file, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")  # a committed answer survives a power failure
        self._connection.execute(_CREATE)
        self._connection.commit()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log back in, and let the file go."""
        self._connection.close()

    def record(self, outcomes: Iterable[Completion | Rejection]) -> None:
        """Make outcomes durable: when this returns, they count."""
        rows = [self._body(outcome) for outcome in outcomes]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def adopt(self, rows: pa.Table) -> int:
        """Take over completions that an earlier version holds; return how many."""
        schema = self._schemas["completion"]
        table = rows.select(schema.names).cast(schema)
        bodies = [
            (batch.column("id")[0].as_py(), "completion", batch.serialize().to_pybytes())
            for batch in table.to_batches(max_chunksize=1)
            if batch.num_rows
        ]
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", bodies)
        return len(bodies)

    def answered(self, ids: Sequence[str]) -> set[str]:
        """Which of these requests have an answer."""
        return {row[0] for row in self._rows("id", ids)}

    def read(self, ids: Sequence[str]) -> dict[str, Entry]:
        """The answers to these requests, those that there are."""
        found = {}
        for id_, kind, body in self._rows("id, kind, body", ids):
            found[id_] = Entry(id_, kind, pa.ipc.read_record_batch(pa.py_buffer(body), self._schemas[kind]))
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """Drop answers that a finished version now holds."""
        with self._connection:
            self._connection.executemany("DELETE FROM answers WHERE id = ?", [(id_,) for id_ in ids])
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.execute("VACUUM")

    def _rows(self, columns: str, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        for start in range(0, len(ids), _SELECT_AT_ONCE):
            part = ids[start : start + _SELECT_AT_ONCE]
            marks = ",".join("?" * len(part))
            yield from self._connection.execute(f"SELECT {columns} FROM answers WHERE id IN ({marks})", part)

    def _body(self, outcome: Completion | Rejection) -> tuple[str, Kind, bytes]:
        if isinstance(outcome, Rejection):
            return outcome.id, "rejection", self._serialise(rejection_row(outcome, soft=self._soft), "rejection")
        return outcome.id, "completion", self._serialise(completion_row(outcome, soft=self._soft), "completion")

    def _serialise(self, row: dict[str, object], kind: Kind) -> bytes:
        body: bytes = record_batch([row], self._schemas[kind]).serialize().to_pybytes()
        return body
