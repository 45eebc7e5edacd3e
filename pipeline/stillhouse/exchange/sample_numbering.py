"""Number the answers to the same prompt, in a private temporary database, so that memory stays bounded."""

from __future__ import annotations

import sqlite3
from types import TracebackType

_CACHE_KIB = 1 << 15


class Numbering:
    """Counts calls per name. SQLite removes its temporary file however the process ends."""

    def __init__(self) -> None:
        self._store = sqlite3.connect("", isolation_level=None)
        self._store.execute("PRAGMA journal_mode=OFF")
        self._store.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._store.execute("CREATE TABLE seen (name TEXT PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._store.execute("BEGIN")

    def __enter__(self) -> Numbering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def next(self, name: str) -> int:
        """Return how often this was called with `name` before: 0, 1, 2, ..."""
        query = "INSERT INTO seen VALUES (?, 0) ON CONFLICT (name) DO UPDATE SET times = times + 1 RETURNING times"
        (times,) = self._store.execute(query, (f"n:{name}",)).fetchone()
        return int(times)

    def is_new(self, name: str) -> bool:
        """Whether this is the first call with `name`."""
        return self._store.execute("INSERT OR IGNORE INTO seen VALUES (?, 0)", (f"a:{name}",)).rowcount > 0
