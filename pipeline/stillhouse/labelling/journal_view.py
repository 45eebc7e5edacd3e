"""A read-only view of a journal: how much was spent, and which requests have an answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stillhouse.labelling.journal import FILE_NAME, LEASE_NOTE


class JournalView:
    """A journal opened read-only, while another run may be writing it."""

    def __init__(self, folder: Path) -> None:
        file = folder / FILE_NAME
        self._connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True) if file.is_file() else None
        if self._scalar("SELECT count(*) FROM sqlite_master WHERE name IN ('answers', 'reserved', 'notes')") != 3:
            self.close()  # its run has only started, or a pre-release wrote it
            self._connection = None

    def spent(self) -> float:
        """Dollars spent on this dataset, including what a current run has reserved or lent."""
        spent = self._scalar("SELECT value FROM notes WHERE name = 'spent_usd'")
        lent = self._scalar(f"SELECT sum(value) FROM notes WHERE name LIKE '{LEASE_NOTE}%'")
        return sum(float(usd or 0.0) for usd in (spent, lent, self._scalar("SELECT sum(usd) FROM reserved")))

    def ids(self) -> Iterator[str]:
        """Yield the key of every request that has an answer."""
        if self._connection is not None:
            yield from (id_ for (id_,) in self._connection.execute("SELECT id FROM answers"))

    def get_note(self, name: str) -> str | None:
        """Return a note of the engine, as `Journal.get_note` does."""
        query = "SELECT value FROM notes WHERE name = ?"
        row = self._connection.execute(query, (name,)).fetchone() if self._connection is not None else None
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def _scalar(self, query: str) -> Any:
        row = self._connection.execute(query).fetchone() if self._connection is not None else None
        return row[0] if row else None
