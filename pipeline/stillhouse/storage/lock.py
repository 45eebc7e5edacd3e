"""The write lock of a folder in a store: a lock object, created only if none exists and renewed while its writer lives.

    with store_lock(RemotePath("s3://bucket/labels/words")): ...

The lock is created by a conditional write (S3's If-None-Match: *), and renewed and taken over by conditional writes that
fail if the object has changed since it was read (If-Match with its ETag), so two runs cannot hold it. Every change in the
folder first checks that this run still holds the lock: a writer that was presumed dead stops before it writes a manifest.

On a store without conditional writes, the lock is written, and read again after a wait; docs/storage.md describes how much
protection that gives.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from stillhouse.errors import DatasetBusy, StorageFailed
from stillhouse.storage.location import RemotePath, write_guards
from stillhouse.storage.lock_holder import Holder, holder_from, this_process
from stillhouse.storage.service import call_store, has_code, is_s3

FILE_NAME = ".lock"
STALE_AFTER = 60.0  # seconds without renewal after which a lock may be taken over
RENEW_EVERY = 15.0
_FRESH_FOR = 5.0  # seconds after a renewal during which the lock is not checked again
_SETTLE = 2.0  # seconds to wait for another run's lock to appear, on a store without conditional writes
_ATTEMPTS = 5
_LOG = logging.getLogger(__name__)


@contextmanager
def store_lock(folder: RemotePath) -> Iterator[None]:
    """Lock a folder in a store for writing while the block runs.

    Raises:
        DatasetBusy: another run holds the lock; the message names that run.
        StorageFailed: the store cannot be used.
    """
    lock = StoreLock(folder)
    lock.acquire()
    write_guards[folder.url] = lock.check_held
    try:
        yield
    finally:
        del write_guards[folder.url]
        lock.release()


class StoreLock:
    """The lock of one folder, as held by this run."""

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._holder = this_process()
        self._tag = ""  # the object's ETag; empty if the store has no conditional writes
        self._lost: str | None = None  # how the lock was lost; None while it is held
        self._renewed = 0.0
        self._renewing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="lock", daemon=True)

    def acquire(self) -> None:
        """Acquire the lock and start renewing it, see `store_lock`."""
        if not any(self._create() or self._take_over() for _ in range(_ATTEMPTS)):
            raise self._busy(_read_lock(self._path))
        if not self._rejects_second_write():
            self._tag = ""
            self._check_again()
        self._renewed = time.monotonic()
        self._thread.start()

    def check_held(self) -> None:
        """Check that this run still holds the lock, and renew it if it was not renewed recently.

        Raises:
            DatasetBusy: another run has taken the lock over, or it was removed.
            StorageFailed: the store cannot be reached.
        """
        with self._renewing:
            if self._lost is None and time.monotonic() - self._renewed > _FRESH_FOR:
                self._renew()
            if self._lost is not None:
                raise DatasetBusy(
                    f"this run no longer holds the lock of {self._folder}: {self._lost} (a lock that is not renewed for "
                    f"{STALE_AFTER:.0f} seconds may be taken over). Nothing more is written there, and all answers are in "
                    "the journal",
                    fix="run again when no other run is writing this dataset",
                )

    def release(self) -> None:
        """Release the lock, if this run still holds it."""
        self._released.set()
        self._thread.join()
        with suppress(StorageFailed, FileNotFoundError, FileExistsError):
            if self._lost is None:
                self._renew()  # always check: a lock that another run has taken over must stay
            if self._lost is None:
                _remove(self._path, self._tag)

    # ----------------------------------------------------------------------------------------------------- acquiring

    def _create(self) -> bool:
        try:
            self._tag = _put_if_absent(self._path, self._holder.as_bytes())
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> bool:
        """Take over the lock of a writer that has ended; False if acquiring must be tried again.

        Raises:
            DatasetBusy: the writer is still alive.
        """
        found = _read_lock(self._path)
        if found is None:
            return False
        if found.belongs_to(self._holder):  # this run's write, whose response was lost
            self._tag = found.tag
            return True
        if not found.is_free():
            raise self._busy(found)
        try:
            if found.tag:
                self._tag = _put_if_unchanged(self._path, self._holder.as_bytes(), found.tag)
            else:
                _remove(self._path, "")
        except (FileExistsError, FileNotFoundError):
            return False  # another run was faster
        _LOG.warning("%s: took over the lock of a run that has ended (%s)", self._folder, found.holder or "unknown")
        return bool(found.tag)

    def _rejects_second_write(self) -> bool:
        """Whether the store enforces conditional writes: some accept the condition and write anyway."""
        again = self._holder.renewed()
        try:
            _put_if_absent(self._path, again.as_bytes())
        except FileExistsError:
            return bool(self._tag) or _creates_exclusively(self._path)
        self._holder = again
        return False

    def _check_again(self) -> None:
        """Check the lock again after a wait: if two runs wrote at once, the one whose lock remains holds it."""
        time.sleep(_SETTLE)
        found = _read_lock(self._path)
        if found is None or not found.belongs_to(self._holder):
            raise self._busy(found)

    def _busy(self, found: _StoredLock | None) -> DatasetBusy:
        holder = f"{found.holder or 'unknown'}, renewed {found.age:.0f} seconds ago" if found else "unknown"
        return DatasetBusy(
            f"{self._folder} is being written by another run ({holder})",
            found.holder.name if found and found.holder else "another run",
            fix=f"wait until it is done, or stop it. If it has ended, run again {STALE_AFTER:.0f} seconds after the last "
            "renewal of its lock",
        )

    # ------------------------------------------------------------------------------------------------------- renewing

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEW_EVERY) and self._lost is None:
            with self._renewing, suppress(StorageFailed):  # an unreachable store is tried again at the next renewal
                self._renew(retry_seconds=0)

    def _renew(self, retry_seconds: float | None = None) -> None:
        following = self._holder.renewed()
        try:
            if self._tag:
                self._tag = _put_if_unchanged(self._path, following.as_bytes(), self._tag, retry_seconds)
            elif (found := _read_lock(self._path, retry_seconds)) is not None and found.belongs_to(self._holder):
                _put(self._path, following.as_bytes(), retry_seconds)
            else:
                raise FileExistsError
        except (FileExistsError, FileNotFoundError):
            found = _read_lock(self._path, retry_seconds)
            if found is None or not found.belongs_to(self._holder):
                self._lost = f"{found.holder or 'another run'} holds it" if found else "it was removed"
                return
            self._tag, following = found.tag and self._tag and found.tag, found.holder or following
        self._holder = following
        self._renewed = time.monotonic()


@dataclass(frozen=True)
class _StoredLock:
    """A lock as read from the store."""

    holder: Holder | None  # None: unreadable, or written by another release
    tag: str
    age: float  # seconds since it was renewed; on S3, by the store's clock

    def belongs_to(self, holder: Holder) -> bool:
        return self.holder is not None and self.holder.id == holder.id

    def is_free(self) -> bool:
        return self.age > STALE_AFTER or (self.holder is not None and self.holder.has_ended())


# --------------------------------------------------------------------------------------------------------------- objects


def _read_lock(path: RemotePath, retry_seconds: float | None = None) -> _StoredLock | None:
    """Read the lock; None if there is none.

    The ETag is read before the content: if the lock changes in between, a write with that ETag fails.
    """

    def request(fs: Any, own: str) -> tuple[str, float]:
        if not is_s3(path.url):
            try:
                return "", (datetime.now(UTC) - fs.modified(own).astimezone(UTC)).total_seconds()
            except NotImplementedError:
                return "", 0.0  # never stale: if its writer is gone, a person must remove the lock
        bucket, key, _ = fs.split_path(own)
        head = fs.call_s3("head_object", Bucket=bucket, Key=key)
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        return str(head["ETag"]), (now - head["LastModified"]).total_seconds()

    try:
        tag, age = call_store(path.url, request, retry_seconds=retry_seconds)
        content = call_store(path.url, lambda fs, own: bytes(fs.cat_file(own)), retry_seconds=retry_seconds)
    except FileNotFoundError:
        return None
    return _StoredLock(holder_from(content), tag, age)


def _put_if_absent(path: RemotePath, data: bytes) -> str:
    """Create an object and return its tag, "" without conditional writes.

    Raises:
        FileExistsError: the object exists.
    """

    def request(fs: Any, own: str) -> str:
        if not is_s3(path.url):
            if _creates_exclusively(path):
                fs.pipe_file(own, data, mode="create")
            elif fs.exists(own):
                raise FileExistsError
            else:
                fs.makedirs(fs._parent(own), exist_ok=True)
                fs.pipe_file(own, data)
            return ""
        bucket, key, _ = fs.split_path(own)
        try:
            return str(fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")["ETag"])
        except OSError as error:
            if not has_code(error, "NotImplemented", "501"):
                raise
        if fs.exists(own):
            raise FileExistsError
        fs.pipe_file(own, data)
        return ""

    return call_store(path.url, request)


def _put_if_unchanged(path: RemotePath, data: bytes, tag: str, retry_seconds: float | None = None) -> str:
    """Replace an object and return its new tag.

    Raises:
        FileExistsError: the object no longer has this tag.
        FileNotFoundError: the object was removed.
    """

    def request(fs: Any, own: str) -> str:
        bucket, key, _ = fs.split_path(own)
        return str(fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=tag)["ETag"])

    return call_store(path.url, request, retry_seconds=retry_seconds)


def _put(path: RemotePath, data: bytes, retry_seconds: float | None) -> None:
    call_store(path.url, lambda fs, own: fs.pipe_file(own, data), retry_seconds=retry_seconds)


def _remove(path: RemotePath, tag: str) -> None:
    """Remove an object; with a tag, only if it still has this tag."""

    def request(fs: Any, own: str) -> None:
        if not tag:
            fs.rm_file(own)
            return
        bucket, key, _ = fs.split_path(own)
        fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=tag)

    call_store(path.url, request)


def _creates_exclusively(path: RemotePath) -> bool:
    """Whether fsspec's `mode="create"` is known to be atomic on this store."""
    return path.url.partition("://")[0] in ("memory", "gs", "gcs", "az", "abfs", "abfss")
