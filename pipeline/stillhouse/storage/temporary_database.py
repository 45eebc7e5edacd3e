"""A private temporary database, for data that need not survive the process and may not fit in memory.

    with closing(temporary_database("CREATE TABLE seen (name TEXT PRIMARY KEY) WITHOUT ROWID")) as store:
        store.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,))

SQLite keeps it in a file without a name, which is gone however the process ends; its page cache is all the memory it takes.
All changes are in one transaction that is never committed, without a journal: nothing is ever rolled back.
"""

from __future__ import annotations

import sqlite3

_CACHE_KIB = 2_000  # SQLite's own default


def temporary_database(schema: str, *, cache_kib: int = _CACHE_KIB) -> sqlite3.Connection:
    """Open an empty temporary database with these tables. Several threads may use it, one at a time.

    Args:
        schema: SQL statements that create its tables, separated by semicolons.
        cache_kib: most memory that it takes, in KiB; what does not fit is on disk.
    """
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    connection.executescript(
        f"PRAGMA temp_store=FILE; PRAGMA journal_mode=OFF; PRAGMA cache_size=-{cache_kib}; BEGIN; {schema}"
    )
    return connection
