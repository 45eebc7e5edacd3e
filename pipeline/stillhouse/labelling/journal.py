"""The journal: a SQLite file that stores every answer durably before it is counted, and the money spent.

One SQLite file per dataset, next to its versions, keyed by request: an answer in the journal is never requested again, even
if shards or prompt files change or the process is killed. Answers committed together are stored in one Arrow record batch
with the columns of the shard's Parquet file, so nothing is converted twice. Rows are deleted from the journal once the
manifest of the version that contains them is on disk.

    await journal.commit(Change(outcomes=[completion], settle=7, spent_usd=0.002))      # durable when it returns

A separate thread commits. All changes that arrive during one commit's fsync go into the next commit together (group
commit), so durability does not cost throughput and a single answer need not wait for others.

The journal belongs to the dataset and not to a shard (see docs/labelling.md): editing a prompt file moves prompts between
shards, and their answers must still be found.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.dataset.columns import completion_row, completion_schema, record_batch, rejection_row, rejection_schema
from stillhouse.errors import StorageFailed
from stillhouse.labelling.retrying import Retry, rejections_in
from stillhouse.records import Completion, EncodingName, Rejection, content_hash

FILE_NAME = "journal.sqlite"
_CREATE = """
CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, batch INTEGER NOT NULL, row INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reserved (number INTEGER PRIMARY KEY, usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
_VALUES_PER_QUERY = 500  # well below SQLite's limit on variables per statement
_BATCHES_PER_QUERY = 8  # batches loaded at once while rows are selected
_COPY_BATCH = 100  # rows per batch: small, because reordered prompts find their answers in many batches

LEASE_NOTE = "lent to "  # prefix of the note on what a part may spend, before its name

Kind = Literal["completion", "rejection"]


@dataclass(frozen=True)
class Answers:
    """The answers to some requests: a table for each kind, and the position of each request's row in them."""

    tables: Mapping[Kind, pa.Table]
    places: Mapping[str, tuple[Kind, int]]


@dataclass(frozen=True)
class Change:
    """Changes to the journal that become durable together."""

    outcomes: Sequence[Completion | Rejection] = ()
    reserve: tuple[int, float] | None = None  # number, dollars
    settle: int | None = None  # number of the reservation to end
    spent_usd: float = 0.0


class Journal:
    """The journal, opened by the dataset's only writer (`durable.write_lock`). Usable as a context manager."""

    def __init__(self, folder: Path, *, soft: EncodingName | None) -> None:
        self._file = folder / FILE_NAME
        self._soft = soft
        self._schemas = {"completion": completion_schema(soft=soft), "rejection": rejection_schema(soft=soft)}
        self._lock = threading.Lock()  # guards the reading connection
        self._writing = threading.Lock()  # guards the writing connection, shared by the commit thread and the engine
        with self._storage(), ExitStack() as opened:
            self._writer = opened.enter_context(closing(self._connect()))
            self._prepare()
            self._settle_open_reservations()
            self._reader = opened.enter_context(closing(self._connect()))
            opened.pop_all()
        self._changes: queue.SimpleQueue[tuple[Change, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_groups, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit pending changes, checkpoint the write-ahead log and close the file."""
        self._changes.put(None)
        self._thread.join()
        with self._lock:  # let reads in abandoned threads finish first
            self._reader.close()
        self._writer.close()

    # -------------------------------------------------------------------------------------------------------- writing

    async def commit(self, change: Change) -> None:
        """Commit a change; it is durable when this returns.

        Raises:
            StorageFailed: the disk is full or cannot be written; the change is not applied.
        """
        await self.commit_soon(change)

    def commit_soon(self, change: Change) -> asyncio.Future[None]:
        """Commit a change without waiting; the returned future completes when the change is durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.put((change, done))
        return done

    def copy_from(self, rows: pa.RecordBatch) -> int:
        """Copy answers of an earlier version that the journal does not have yet; return the number of rows given.

        Rows rejected by a filter are stored as completions; rows rejected by the teacher stay rejections.
        """
        ids = rows.column("id").to_pylist()
        known = self.answered(ids)
        new = rows.filter(pa.array([id_ not in known for id_ in ids], pa.bool_()))
        by_kind: dict[Kind, pa.RecordBatch] = {"completion": new}
        if "stage" in rows.schema.names:
            by_teacher = pc.equal(new.column("stage"), "teacher")
            by_kind = {"completion": new.filter(pc.invert(by_teacher)), "rejection": new.filter(by_teacher)}
        with self._storage(), self._writing, self._writer:
            for kind, part in by_kind.items():
                schema = self._schemas[kind]
                for start in range(0, part.num_rows, _COPY_BATCH):
                    self._insert(kind, part.slice(start, _COPY_BATCH).select(schema.names).cast(schema))
        return len(ids)

    def rename(self, names: Mapping[str, str]) -> int:
        """Rename answers, {former key: key}; return how many were found. An answer already under a new key is kept."""
        found = self.read([*names])
        if not found.places:
            return 0
        known = self.answered([names[id_] for id_ in found.places])
        with self._storage(), self._writing, self._writer:
            for kind, table in found.tables.items():
                ids = [names[id_] for id_ in table.column("id").to_pylist()]
                column = table.schema.get_field_index("id")
                named = table.set_column(column, table.schema.field(column), pa.array(ids, pa.string()))
                new = named.filter(pa.array([id_ not in known for id_ in ids], pa.bool_()))
                for batch in new.to_batches(max_chunksize=_COPY_BATCH):
                    self._insert(kind, batch)
            self._writer.executemany("DELETE FROM answers WHERE id = ?", ((id_,) for id_ in found.places))
            self._writer.execute("DELETE FROM batches WHERE number NOT IN (SELECT batch FROM answers)")
        return len(found.places)

    def delete(self, ids: Iterable[str], count: int) -> None:
        """Delete answers that a finished version now contains; `count` is their number, and all are in the journal."""
        with self._storage(), self._writing:
            with self._writer:
                (stored,) = self._writer.execute("SELECT count(*) FROM answers").fetchone()
                if stored == count:  # no other answers: SQLite can truncate the tables
                    self._writer.execute("DELETE FROM answers")
                    self._writer.execute("DELETE FROM batches")
                else:
                    self._writer.executemany("DELETE FROM answers WHERE id = ?", ((id_,) for id_ in ids))
                    self._writer.execute("DELETE FROM batches WHERE number NOT IN (SELECT batch FROM answers)")
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # shrink the file itself, not only the log

    def rejections(self) -> Counter[tuple[str, bool]]:
        """Count the requests rejected by teacher errors, by (reason, whether an answer came with it)."""
        return Counter((reason, answered) for *_, reason, answered in self._teacher_rejections())

    def delete_rejections(self, retry: Retry) -> None:
        """Delete the teacher rejections that `retry` selects."""
        found = self._teacher_rejections()
        places = [place for *place, reason, answered in found if retry.selects(reason, answered=answered)]
        with self._storage(), self._writing, self._writer:
            self._writer.executemany("DELETE FROM answers WHERE id = ? AND batch = ? AND row = ?", places)

    def set_note(self, name: str, value: str) -> None:
        """Store a named value for the engine, such as which plan's answers were copied from earlier versions."""
        with self._storage(), self._writing, self._writer:
            self._writer.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def lend(self, part: str, usd: float) -> None:
        """Record the total that a part may spend elsewhere; it counts as spent until it is repaid."""
        self.set_note(f"{LEASE_NOTE}{part}", str(usd))

    def repay(self, part: str, spent_usd: float) -> bool:
        """Replace a part's lease with the amount it spent; return False and change nothing if it has no lease."""
        with self._storage(), self._writing, self._writer:
            lent = self._writer.execute("DELETE FROM notes WHERE name = ?", (f"{LEASE_NOTE}{part}",)).rowcount > 0
            if lent:
                self._spend(spent_usd)
        return lent

    # -------------------------------------------------------------------------------------------------------- reading

    def answered(self, ids: Sequence[str]) -> set[str]:
        """Return which of these requests have an answer."""
        return {row[0] for row in self._rows("id", ids)}

    @property
    def has_answers(self) -> bool:
        """Whether the journal has any answer."""
        with self._storage(), self._lock:
            return self._reader.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def read(self, ids: Sequence[str]) -> Answers:
        """Return the answers to these requests; requests without an answer are left out."""
        found: dict[int, dict[str, int]] = {}  # batch number -> {id: row} of the rows to read
        for id_, number, row in self._rows("id, batch, row", ids):
            found.setdefault(number, {})[id_] = row
        picked: dict[Kind, list[pa.RecordBatch]] = {"completion": [], "rejection": []}
        places: dict[str, tuple[Kind, int]] = {}
        lengths = dict.fromkeys(picked, 0)
        query = "SELECT number, kind, body FROM batches WHERE number IN ({})"
        for number, kind, body in self._select(query, sorted(found), _BATCHES_PER_QUERY):
            batch = pa.ipc.read_record_batch(pa.py_buffer(body), self._schemas[kind])
            rows = found[number]
            places |= {id_: (kind, lengths[kind] + place) for place, id_ in enumerate(rows)}
            lengths[kind] += len(rows)
            picked[kind].append(batch.take(pa.array(rows.values(), pa.int32())))
        tables = {
            kind: pa.Table.from_batches(listed, self._schemas[kind]).combine_chunks() for kind, listed in picked.items()
        }
        return Answers(tables, places)

    def get_note(self, name: str) -> str | None:
        """Return the value stored by `set_note`, or None."""
        with self._storage(), self._lock:
            row = self._reader.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def spent(self) -> float:
        """Dollars spent on this dataset by all its runs."""
        return float(self.get_note("spent_usd") or 0.0)

    def lent(self) -> dict[str, float]:
        """Return the amount lent to each part that is not repaid yet."""
        query = "SELECT name, value FROM notes WHERE name LIKE ?"
        with self._storage(), self._lock:
            rows = self._reader.execute(query, (f"{LEASE_NOTE}%",)).fetchall()
        return {name.removeprefix(LEASE_NOTE): float(usd) for name, usd in rows}

    # ----------------------------------------------------------------------------------------------------- internals

    def _connect(self) -> sqlite3.Connection:
        with ExitStack() as opened:
            connection = sqlite3.connect(self._file, check_same_thread=False)
            opened.enter_context(closing(connection))
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a committed answer survives a power failure
            opened.pop_all()
        return connection

    def _prepare(self) -> None:
        """Create the tables, and refuse a journal whose batches have the columns of another release."""
        self._writer.executescript(_CREATE)
        kind = {None: False, "top-k": True}.get(self._soft, self._soft)  # None, top-k: as older releases wrote them
        name, columns = f"columns, soft={kind}", content_hash([str(schema) for schema in self._schemas.values()])
        stored = self._writer.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        if stored is None:
            with self._writer:
                self._writer.execute("INSERT INTO notes VALUES (?, ?)", (name, columns))
        elif stored[0] != columns:
            raise StorageFailed(
                f"{self._file} was written by a release of Stillhouse whose rows have other columns",
                fix="finish the dataset with that release, or delete the file (its answers are then requested again)",
            )

    def _settle_open_reservations(self) -> None:
        """Count the reservations of a killed run as spent: their answers may have been billed."""
        with self._writer:
            (reserved,) = self._writer.execute("SELECT coalesce(sum(usd), 0) FROM reserved").fetchone()
            self._writer.execute("DELETE FROM reserved")
            self._spend(reserved)

    def _spend(self, usd: float) -> None:
        if usd:
            self._writer.execute(
                "INSERT INTO notes VALUES ('spent_usd', ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (usd,),
            )

    def _commit_groups(self) -> None:
        """Run the commit thread: take all pending changes, commit them together, and notify the waiters."""
        pa.array([0])  # imports pandas, which is slow: do it before the first answers arrive
        running = True
        while running:
            group = [self._changes.get()]
            while not self._changes.empty():
                group.append(self._changes.get())
            running = None not in group
            waiting = [one for one in group if one is not None]
            error: BaseException | None = None
            try:
                with self._storage(), self._writing:
                    self._write([change for change, _ in waiting])
            except BaseException as caught:  # passed on to every waiter
                error = caught
            for loop in {done.get_loop() for _, done in waiting}:
                with suppress(RuntimeError):  # the loop is closed: there is no waiter left
                    loop.call_soon_threadsafe(_notify, [done for _, done in waiting if done.get_loop() is loop], error)

    def _write(self, changes: Sequence[Change]) -> None:
        outcomes = [outcome for change in changes for outcome in change.outcomes]
        completions = [completion_row(one, soft=self._soft) for one in outcomes if isinstance(one, Completion)]
        rejections = [rejection_row(one, soft=self._soft) for one in outcomes if isinstance(one, Rejection)]
        with self._writer:
            if completions:
                self._insert("completion", record_batch(completions, self._schemas["completion"]))
            if rejections:
                self._insert("rejection", record_batch(rejections, self._schemas["rejection"]))
            reserved = [change.reserve for change in changes if change.reserve]
            if reserved:
                self._writer.executemany("INSERT INTO reserved VALUES (?, ?)", reserved)
            settled = [(change.settle,) for change in changes if change.settle is not None]
            if settled:
                self._writer.executemany("DELETE FROM reserved WHERE number = ?", settled)
            self._spend(sum(change.spent_usd for change in changes))

    def _insert(self, kind: Kind, batch: pa.RecordBatch) -> None:
        """Insert one batch and the position of each of its rows; call it within a transaction."""
        body = batch.serialize().to_pybytes()
        number = self._writer.execute("INSERT INTO batches (kind, body) VALUES (?, ?)", (kind, body)).lastrowid
        places = [(id_, number, row) for row, id_ in enumerate(batch.column("id").to_pylist())]
        self._writer.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", places)

    def _teacher_rejections(self) -> Iterator[tuple[str, int, int, str, bool]]:
        """Yield (key, batch, row, reason, whether it has an answer) of each teacher rejection still in place."""
        query = "SELECT number, body FROM batches WHERE kind = 'rejection' ORDER BY number"
        with self._storage(), self._lock:
            batches = self._reader.execute(query).fetchall()
        for number, body in batches:
            batch = pa.ipc.read_record_batch(pa.py_buffer(body), self._schemas["rejection"])
            ids = batch.column("id").to_pylist()
            current = {id_: row for id_, found, row in self._rows("id, batch, row", ids) if found == number}
            for row, (id_, (by_teacher, reason, answered)) in enumerate(zip(ids, rejections_in(batch), strict=True)):
                if by_teacher and current.get(id_) == row:
                    yield id_, number, row, reason, answered

    def _rows(self, columns: str, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        return self._select(f"SELECT {columns} FROM answers WHERE id IN ({{}})", ids)

    def _select(self, query: str, values: Sequence[Any], at_once: int = _VALUES_PER_QUERY) -> Iterable[tuple[Any, ...]]:
        """Run a query whose `{}` is a list of values, in chunks of `at_once` values, and yield its rows."""
        for start in range(0, len(values), at_once):
            part = values[start : start + at_once]
            with self._storage(), self._lock:
                found = self._reader.execute(query.format(",".join("?" * len(part))), part).fetchall()
            yield from found

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Raise SQLite's errors as `StorageFailed`, with advice."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StorageFailed(
                f"{self._file} cannot be used: {error}; all answers stored before are kept",
                fix="free disk space or give write permission, and run again",
            ) from None


def _notify(waiting: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
    for done in waiting:
        if done.done():  # cancelled
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # mark as retrieved: a future that nothing awaits (`commit_soon`) logs no warning
