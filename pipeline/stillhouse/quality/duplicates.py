"""Reject exact and near duplicates of completions that were kept before.

- {kind: duplicates}                              # near 0.8: a Jaccard similarity of 0.8 or more
- {kind: duplicates, near: null, of: both}        # only if prompt and completion have exactly the same words

`near` is the Jaccard similarity of the sets of 3-word shingles, estimated by MinHash (Broder 1997); candidates are found by
banding (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). Kept completions are stored in a temporary
database, so memory does not grow with the dataset.
"""

from __future__ import annotations

import hashlib
import weakref
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from datasketch import MinHash
from pydantic import Field

from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.storage.temporary_database import temporary_database
from stillhouse.text import shingles, words

_CREATE = """
CREATE TABLE kept (number INTEGER PRIMARY KEY, id TEXT, owner TEXT, exact BLOB, signature BLOB);
CREATE INDEX kept_exact ON kept (exact);
CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID
"""
_SAME = "SELECT id FROM kept WHERE exact = ? AND owner != ? ORDER BY number LIMIT 1"
_LIKE = """
SELECT DISTINCT number, id, signature FROM bands JOIN kept USING (number)
WHERE band IN ({}) AND owner != ? ORDER BY number
"""


class DuplicatesOptions(Settings):
    """Options of this filter."""

    near: float | None = Field(
        default=0.8, gt=0, le=1, description="least similarity of a duplicate; None: exact duplicates only"
    )
    permutations: int = Field(
        default=128, ge=16, le=1024, description="the estimate's standard error is at most 0.5 / sqrt(this)"
    )
    of: Literal["completion", "prompt", "both"] = Field(
        default="completion", description="prompt: across prompts only; both: joined as one text"
    )


def open_filter(options: dict[str, Any]) -> Duplicates:
    """Build the filter, see the module's docstring."""
    return Duplicates(parse_options("quality.duplicates", options, DuplicatesOptions))


class Fingerprint(NamedTuple):
    """The hashes by which a text is compared."""

    exact: bytes  # a hash of its words
    signature: npt.NDArray[np.uint32]  # (permutations,), or (0,) if only exact duplicates are rejected


class Banding(NamedTuple):
    """A signature is cut into `bands` of `rows` values; two texts that share a band are candidates."""

    bands: int
    rows: int

    @classmethod
    def for_threshold(cls, near: float, permutations: int) -> Banding:
        """Choose the longest bands (fewest candidates) that find a pair of similarity `near` with probability 0.99.

        A pair of similarity s shares a band with probability 1 - (1 - s^rows)^bands.
        """
        for rows in range(permutations, 1, -1):
            bands = permutations // rows
            if 1 - (1 - near**rows) ** bands >= 0.99:
                return cls(bands, rows)
        return cls(permutations, 1)

    def cut(self, signature: npt.NDArray[np.uint32]) -> list[int]:
        """Return a key for every band: its index and a hash of its values, in one integer."""
        bands = signature[: self.bands * self.rows].reshape(self.bands, self.rows)
        return [place << 32 | zlib.crc32(values.tobytes()) for place, values in enumerate(bands)]


class Duplicates:
    """Compares a completion with the recorded ones."""

    def __init__(self, options: DuplicatesOptions) -> None:
        self._options = options
        self._banding = Banding.for_threshold(options.near or 1.0, options.permutations)
        self._blank = MinHash(num_perm=options.permutations)
        self._fingerprint = lru_cache(maxsize=1)(self._compute_fingerprint)  # checked, then recorded
        self._kept = temporary_database(_CREATE)
        weakref.finalize(self, self._kept.close)

    def __call__(self, completion: Completion) -> str | None:
        mine = self._fingerprint(self._text(completion))
        owner = self._owner(completion)
        same = self._kept.execute(_SAME, (mine.exact, owner)).fetchone()
        if same is not None:
            return f"the same words as the kept {same[0]}"
        if self._options.near is None:
            return None
        best, like = max(self._candidates(mine, owner), default=(0.0, ""), key=lambda found: found[0])
        return f"similarity {best:.2f} to the kept {like}" if best >= self._options.near else None

    def record_kept(self, completion: Completion) -> None:
        """Store a kept completion, to compare later ones with it."""
        mine = self._fingerprint(self._text(completion))
        row = (completion.id, self._owner(completion), mine.exact, mine.signature.tobytes())
        number = self._kept.execute("INSERT INTO kept (id, owner, exact, signature) VALUES (?, ?, ?, ?)", row).lastrowid
        if self._options.near is not None:
            bands = [(band, number) for band in self._banding.cut(mine.signature)]
            self._kept.executemany("INSERT INTO bands VALUES (?, ?)", bands)

    def _candidates(self, mine: Fingerprint, owner: str) -> Sequence[tuple[float, str]]:
        """Return (estimated similarity, id) of all kept completions that share a band, oldest first."""
        bands = self._banding.cut(mine.signature)
        found = self._kept.execute(_LIKE.format(", ".join("?" * len(bands))), [*bands, owner])
        return [(float(np.mean(np.frombuffer(kept, np.uint32) == mine.signature)), id_) for _, id_, kept in found]

    def _text(self, completion: Completion) -> str:
        parts = {"completion": (completion.text,), "prompt": (completion.prompt.text,)}
        return "\n".join(parts.get(self._options.of, (completion.prompt.text, completion.text)))

    def _owner(self, completion: Completion) -> str:
        """Return the group within which rows are not duplicates: the row itself, or its prompt with `of: prompt`."""
        return completion.prompt.id if self._options.of == "prompt" else completion.id

    def _compute_fingerprint(self, text: str) -> Fingerprint:
        exact = hashlib.blake2b(" ".join(words(text)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self._options.near is None:
            return Fingerprint(exact, np.zeros(0, np.uint32))
        sketch = self._blank.copy()
        sketch.update_batch([one.encode("utf-8", "surrogatepass") for one in shingles(text)])
        return Fingerprint(exact, sketch.hashvalues)
