"""Durable, atomic writes: a file either exists with its full content on disk, or does not exist.

On this machine: temporary file in the same folder, fsync, rename, fsync of the folder. In a store behind a URL: a local
temporary file, uploaded atomically. Everything that must survive a crash is written through this module, by the process
that holds the folder's lock (`write_lock`).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stillhouse.errors import Busy, DatasetBusy, StorageFailed
from stillhouse.storage.location import Location, RangeFile, RemotePath
from stillhouse.storage.lock_holder import holder_from, this_process

_REMOTE_CHUNK = 8 << 20  # one request each


@contextmanager
def atomic_file(path: Location) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing; it replaces `path` atomically when the block ends without error.

    Raises:
        StorageFailed: the disk is full, the folder cannot be written, or the store cannot be reached.
    """
    if isinstance(path, RemotePath):
        with _uploaded(path) as stream:
            yield stream
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _storage_errors(path):
        make_folder(path.parent)
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Location, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as stream:
        stream.write(data)


def fsync_files(folder: Path) -> None:
    """Fsync a local folder recursively: its files, its subfolders, itself and its entry in the parent folder.

    Raises:
        StorageFailed: the disk is full.
    """
    with _storage_errors(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            elif path.is_dir():
                fsync_folder(path)
        fsync_folder(folder)
        fsync_folder(folder.parent)


def make_folder(folder: Location) -> None:
    """Create a folder and its missing parents durably: they survive a power failure.

    Raises:
        StorageFailed: the disk is full, or the folder cannot be made.
    """
    if isinstance(folder, RemotePath) or folder.is_dir():  # a store has no empty folders
        return
    make_folder(folder.parent)
    with _storage_errors(folder):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Location) -> None:
    """Fsync a folder, so that renames inside it survive a power failure.

    Raises:
        StorageFailed: the disk is full, or the folder is gone.
    """
    if isinstance(folder, RemotePath):
        return  # a write that a store has confirmed is durable
    with _storage_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of_file(path: Location) -> str:
    """Return the hex SHA-256 of a file's content, read in chunks."""
    with path.open("rb") as stream:
        source = io.BufferedReader(stream, _REMOTE_CHUNK) if isinstance(stream, RangeFile) else stream
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextmanager
def write_lock(folder: Location, busy: type[Busy] = DatasetBusy, *, keep_lock: bool = True) -> Iterator[None]:
    """Lock `folder` for writing while the block runs.

    On this machine the kernel releases the lock when the process ends in any way; for a store, see storage/lock.py.

    Args:
        folder: a dataset's folder, or a local folder with students or a report.
        busy: the exception type to raise if another run holds the lock.
        keep_lock: whether to keep the released lock file, which names the last writer.

    Raises:
        Busy: another run holds the lock; raised as `busy` (DatasetBusy for a store), with that run in the message.
        StorageFailed: the folder cannot be written.
    """
    if isinstance(folder, RemotePath):
        from stillhouse.storage.lock import store_lock

        with store_lock(folder):
            yield
        return
    file = folder / ".lock"
    with _flock(file, busy) as lock:
        with _storage_errors(folder):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), this_process().as_bytes())  # unbuffered, so close() cannot fail on a full disk
        try:
            yield
        finally:
            if not keep_lock:
                file.unlink(missing_ok=True)  # while locked: the next process to lock it checks for this


@contextmanager
def _flock(file: Path, busy: type[Busy]) -> Iterator[IO[str]]:
    """Take the kernel's exclusive lock (flock) on a file, creating the file if needed."""
    while True:
        with _storage_errors(file.parent):
            make_folder(file.parent)
            lock = file.open("a+", encoding="ascii")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = holder_from(lock.read().encode())
                raise busy(
                    f"{file.parent} is being written by another run ({holder or 'unknown'})",
                    holder.name if holder else "another run",
                    fix="wait until it is done, or stop it",
                ) from None
            if _still_has_name(lock, file):
                yield lock
                return


def _still_has_name(lock: IO[str], file: Path) -> bool:
    """Whether an open file still has this name: its holder may have removed it before releasing the lock."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _uploaded(path: RemotePath) -> Iterator[IO[bytes]]:
    """Open a local temporary file that is uploaded to the store when the block ends without error."""
    folder = Path(tempfile.gettempdir())
    with _storage_errors(folder), tempfile.NamedTemporaryFile(dir=folder) as stream:
        yield stream
        stream.flush()
        file = Path(stream.name)
        path.upload(file, sha256_of_file(file))


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into StorageFailed with an explanation."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"{path} cannot be written: {error.strerror or error}. Data written before is safe",
            fix="free disk space or give write permission, and run again",
        ) from error
