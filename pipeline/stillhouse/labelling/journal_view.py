"""A journal as others see it: how much was spent, and which requests have an answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stillhouse.labelling.journal import FILE_NAME, LEASE


class JournalView:
    """A journal as it is, without becoming its writer: another run may be at work on it."""

    def __init__(self, folder: Path) -> None:
        file = folder / FILE_NAME
        self._connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True) if file.is_file() else None
        if self._one("SELECT count(*) FROM sqlite_master WHERE name IN ('answers', 'reserved', 'notes')") != 3:
            self.close()  # its run has just begun, or it is of a pre-release
            self._connection = None

    def spent(self) -> float:
        """Dollars that were paid for this dataset; what a run at work has reserved or lent is included."""
        noted = self._one("SELECT value FROM notes WHERE name = 'spent_usd'")
        lent = self._one(f"SELECT sum(value) FROM notes WHERE name LIKE '{LEASE}%'")
        return sum(float(usd or 0.0) for usd in (noted, lent, self._one("SELECT sum(usd) FROM reserved")))

    def ids(self) -> Iterator[str]:
        """Every request that has an answer."""
        if self._connection is not None:
            yield from (id_ for (id_,) in self._connection.execute("SELECT id FROM answers"))

    def noted(self, name: str) -> str | None:
        """A note of the engine's, as `Journal.noted` gives it."""
        query = "SELECT value FROM notes WHERE name = ?"
        row = self._connection.execute(query, (name,)).fetchone() if self._connection is not None else None
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()

    def _one(self, query: str) -> Any:
        row = self._connection.execute(query).fetchone() if self._connection is not None else None
        return row[0] if row else None
