"""Durable writing: a file is either wholly there, with its content on the disk, or not there at all.

On this machine: temp file in the same folder, fsync, rename, fsync of the folder. In a store behind a URL: a file of this
machine, put there in one piece. Whatever the program promises to keep is written through here, by the one who holds the
folder (`sole_writer`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stillhouse.errors import Busy, DatasetBusy, StorageFailed
from stillhouse.storage.holder import holder_from, this_process
from stillhouse.storage.location import Location, RemotePath

_CHUNK = 1 << 20
_REMOTE_CHUNK = 8 << 20  # each is a request


@contextmanager
def atomic_file(path: Location) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing; it takes `path`'s place when the block ends without error.

    Raises:
        StorageFailed: the disk is full, the folder cannot be written, or the store cannot be reached.
    """
    if isinstance(path, RemotePath):
        with _uploaded(path) as stream:
            yield stream
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _storage(path):
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
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(data)


def fsync_files(folder: Path) -> None:
    """Bring a folder of this machine to the disk: its files, the folders in it, and its own name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)
    fsync_folder(folder.parent)


def make_folder(folder: Location) -> None:
    """Make a folder and those above it, where they are not there, so that they outlast a power failure too."""
    if isinstance(folder, RemotePath) or folder.is_dir():  # a store has no empty folders
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Location) -> None:
    """Make renames inside `folder` outlast a power failure."""
    if isinstance(folder, RemotePath):
        return  # what a store has confirmed is durable
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of_file(path: Location) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    size = _REMOTE_CHUNK if isinstance(path, RemotePath) else _CHUNK
    with path.open("rb") as stream:
        while chunk := stream.read(size):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def sole_writer(folder: Location, busy: type[Busy] = DatasetBusy, *, keep_lock: bool = True) -> Iterator[None]:
    """Hold `folder` for writing. The kernel frees a folder of this machine when this process ends, however it ends; of a
    store, see `storage/lock.py`.

    Args:
        folder: a dataset's, or one of this machine with students or a report.
        busy: the error of what lies there.
        keep_lock: whether the lock's file stays, free, when this is done; it says who wrote last.

    Raises:
        Busy: as `busy`: another run holds it; the message names that run.
        StorageFailed: the folder cannot be written.
    """
    if isinstance(folder, RemotePath):
        from stillhouse.storage.lock import held

        with held(folder):
            yield
        return
    file = folder / ".lock"
    with _locked(file, busy) as lock:
        with _storage(folder):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), this_process().as_bytes())  # past the buffer, which a full disk would fill for good
        try:
            yield
        finally:
            if not keep_lock:
                file.unlink(missing_ok=True)  # while it is held: whoever waits for it looks whether it is still there


@contextmanager
def _locked(file: Path, busy: type[Busy]) -> Iterator[IO[str]]:
    """The kernel's lock on a file, which is made where it is not there."""
    while True:
        with _storage(file.parent):
            make_folder(file.parent)
            lock = file.open("a+", encoding="ascii")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = holder_from(lock.read().encode())
                raise busy(
                    f"{file.parent} is being written by another run ({holder or 'unknown'}). Wait until it is done, or "
                    "stop it.",
                    holder.name if holder else "another run",
                ) from None
            if _is_still_there(lock, file):
                yield lock
                return


def _is_still_there(lock: IO[str], file: Path) -> bool:
    """Whether an open file is the one that has this name now: its holder may have removed it before it let go."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _uploaded(path: RemotePath) -> Iterator[IO[bytes]]:
    """A file of this machine, put to its place in the store when the block ends without error."""
    folder = Path(tempfile.gettempdir())
    with _storage(folder), tempfile.NamedTemporaryFile(dir=folder) as stream:
        yield stream
        stream.flush()
        file = Path(stream.name)
        path.upload(file, sha256_of_file(file))


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """The system's complaints about the disk, in words."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"{path} cannot be written: {error.strerror or error}. What was durable before is kept: mend the disk (free "
            "space, or the right to write there) and run again."
        ) from error
