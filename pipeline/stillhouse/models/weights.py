"""The sha256 of a model's weight files: all bytes are read once, and the hash is cached by the file's state.

    sha256_of_weights(folder / "model.safetensors")     # the second call does not read the file

The cache has one small JSON file for each weight file, in $STILLHOUSE_CACHE, or else stillhouse/ in $XDG_CACHE_HOME or
~/.cache. An entry is valid only for a file of the same path, size, modification time, change time and inode. If the folder
is not writable or an entry is damaged, the file is read again.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillhouse.errors import StorageFailed
from stillhouse.storage.durable import sha256_of_file, write_atomically

CACHE_VARIABLE = "STILLHOUSE_CACHE"
_FOLDER = "weights"
_CLOCK_TICK = 0.02  # seconds: two changes of a file within one tick of the system's clock have the same time


class FileState(BaseModel):
    """The metadata that changes when a file does."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int  # unlike the modification time, no program can set it back
    inode: int


class _CacheEntry(BaseModel):
    """A cache entry."""

    model_config = ConfigDict(frozen=True)

    state: FileState
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def cache_folder() -> Path | None:
    """Return the folder for small data that can be recomputed; None if the system names none."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home directory
        return None
    return base / "stillhouse"


def sha256_of_weights(file: Path) -> str:
    """Return the hex sha256 of all bytes of a file, from the cache if the file has not changed since they were read."""
    file = file.resolve()
    state = file_state(file)
    entry = _entry(file)
    cached = _read(entry)
    if cached is not None and cached.state == state:
        return cached.sha256
    digest = sha256_of_file(file)
    if entry is not None and file_state(file) == state:  # the file did not change while it was read
        with suppress(StorageFailed):
            write_atomically(entry, _CacheEntry(state=state, sha256=digest).model_dump_json().encode())
    return digest


def file_state(file: Path) -> FileState:
    """Return the state of a file; for one that has just changed, after a wait, so that any later change has another."""
    file = file.resolve()
    if abs(time.time_ns() - file.stat().st_ctime_ns) < _CLOCK_TICK * 1e9:
        time.sleep(_CLOCK_TICK)
    found = file.stat()
    return FileState(
        path=str(file),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        inode=found.st_ino,
    )


def _entry(file: Path) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    return folder / _FOLDER / f"{hashlib.sha256(str(file).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def _read(entry: Path | None) -> _CacheEntry | None:
    """Read a cache entry; None if it does not exist or cannot be read."""
    if entry is None:
        return None
    try:
        return _CacheEntry.model_validate_json(entry.read_bytes())
    except (OSError, ValidationError):
        return None
