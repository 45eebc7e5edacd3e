"""Durable writing: a file is either wholly there, with its content on the disk, or not there at all.

Temp file in the same folder, fsync, rename, fsync of the folder. Whatever the program promises to keep is written
through here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import DatasetBusy, StorageFailed

_CHUNK = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing; it takes `path`'s place when the block ends without error.

    Raises:
        StorageFailed: the disk is full, or the folder cannot be written.
    """
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(data)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there, so that they outlast a power failure too."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlast a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` for writing; the kernel frees it when this process ends, however it ends.

    Raises:
        DatasetBusy: another process holds it; the message names that process.
        StorageFailed: the folder cannot be written.
    """
    with _storage(folder):
        make_folder(folder)
        lock = (folder / ".lock").open("a+", encoding="ascii")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise DatasetBusy(
                f"{folder} is being written by another run (process {holder}). Wait until it is done, or stop it."
            ) from None
        with _storage(folder):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())  # past the buffer, which a full disk would fill for good
        yield


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
