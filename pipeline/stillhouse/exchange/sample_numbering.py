"""Number the answers to the same prompt, in a temporary database, so that memory stays bounded."""

from __future__ import annotations

from types import TracebackType

from stillhouse.storage.temporary_database import temporary_database

_CACHE_KIB = 1 << 15


class Numbering:
    """Counts calls per name."""

    def __init__(self) -> None:
        schema = "CREATE TABLE seen (name TEXT PRIMARY KEY, times INTEGER) WITHOUT ROWID"
        self._store = temporary_database(schema, cache_kib=_CACHE_KIB)

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
