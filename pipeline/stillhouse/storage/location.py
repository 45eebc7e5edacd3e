"""A local or remote folder or file of a dataset: a `Path` on this machine, or a `RemotePath` behind a URL.

    >>> root = location("s3://bucket/labels")           # or location("data/labels"), which is a Path
    >>> str(root / "words" / "v001" / "manifest.json")
    's3://bucket/labels/words/v001/manifest.json'
    >>> (location("data/labels") / "words" / "v001" / "manifest.json").is_file()
    True

A `RemotePath` has the methods of `pathlib.Path` that datasets need, under the same names. Objects are written atomically.
Why not `universal_pathlib`, which also wraps fsspec: its paths are not `Path` objects either, it returns False if a store
cannot be reached, and every single call needs error handling, retries and the lock check.
"""

from __future__ import annotations

import fnmatch
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from stillhouse.errors import StorageFailed, UsageError
from stillhouse.storage.service import call_store, is_s3

_PART = 16 << 20  # bytes per part of a multipart upload: S3's limit of 10,000 parts allows files of 160 GB
_SHA256 = "stillhouse-sha256"  # metadata key with the checksum of an object, on stores that keep metadata
_ATOMIC_UPLOADS = (
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "oss",
    "memory",
)  # stores with atomic uploads

write_guards: dict[str, Callable[[], None]] = {}  # locked folder -> check that is called before each change in it


@dataclass(frozen=True, order=True)
class Stat:
    """A file's metadata: its size in bytes."""

    st_size: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in a store. Every method may raise `StorageFailed`."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, part: str | PurePosixPath) -> RemotePath:
        return RemotePath(f"{self.url}/{str(part).strip('/')}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        above = self.url.rpartition("/")[0]
        return self if above.endswith(":/") else RemotePath(above)

    def relative_to(self, folder: RemotePath) -> PurePosixPath:
        """Return the path relative to `folder`.

        Raises:
            ValueError: the path is not below `folder`.
        """
        if not self.url.startswith(f"{folder.url}/"):
            raise ValueError(f"{self} is not in {folder}")
        return PurePosixPath(self.url.removeprefix(f"{folder.url}/"))

    # -------------------------------------------------------------------------------------------------------- queries

    def exists(self) -> bool:
        """Whether a file or folder exists here; an unreachable store raises an error instead of returning False."""
        return self._info() is not None

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether this is a folder: in an object store, whether anything exists below (there are no empty folders)."""
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> Stat:
        return Stat(int(call_store(self.url, lambda fs, path: fs.info(path))["size"]))

    def tree_size(self) -> int:
        """Return the size in bytes of everything below, from one listing."""
        found: dict[str, Any] = call_store(self.url, lambda fs, path: fs.find(path, detail=True))
        return sum(int(entry["size"]) for entry in found.values())

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders here, as currently listed by the store; none if the folder does not exist."""
        return (self / name for name, _ in self._list_entries())

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the files and folders here whose name matches.

        Raises:
            ValueError: the pattern spans folders (`/` or `**`).
        """
        if "/" in pattern or "**" in pattern:
            raise ValueError(f"the pattern {pattern!r} spans folders, and only {self} itself is listed")
        return (self / name for name, _ in self._list_entries() if fnmatch.fnmatchcase(name, pattern))

    def folders(self) -> list[RemotePath]:
        """Return the folders here, sorted by name: one request in total, where `is_dir` needs one per entry."""
        return [self / name for name, kind in self._list_entries() if kind == "directory"]

    def recorded_sha256(self) -> str | None:
        """Return the SHA-256 that was recorded at upload, or None if the store has none (only S3 keeps it)."""
        if not is_s3(self.url):
            return None

        def request(fs: Any, path: str) -> Any:
            bucket, key, _ = fs.split_path(path)
            return fs.call_s3("head_object", Bucket=bucket, Key=key)

        recorded = call_store(self.url, request).get("Metadata", {}).get(_SHA256)
        return str(recorded) if recorded else None

    # -------------------------------------------------------------------------------------------------------- reading

    def read_bytes(self) -> bytes:
        return bytes(call_store(self.url, lambda fs, path: fs.cat_file(path)))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> RangeFile:
        """Open for reading and seeking: each read is one range request for exactly these bytes.

        Raises:
            ValueError: `mode` is not "rb".
        """
        if mode != "rb":
            raise ValueError(f"{self} can only be opened for reading: write whole files with durable.atomic_file")
        return RangeFile(self)

    # --------------------------------------------------------------------------------------------------------- writing

    def upload(self, file: Path, sha256: str | None = None) -> None:
        """Upload a local file atomically; a large one is uploaded in parts that become visible together."""
        options: dict[str, Any] = {}
        if is_s3(self.url):
            options = {"chunksize": _PART, "Metadata": {_SHA256: sha256} if sha256 else {}}
        is_atomic = self.url.partition("://")[0] in _ATOMIC_UPLOADS

        def request(fs: Any, path: str) -> None:
            self._check_writable()
            if is_atomic:
                fs.put_file(str(file), path, **options)
                return
            fs.makedirs(fs._parent(path), exist_ok=True)
            temporary = f"{fs._parent(path)}/.{self.name}.tmp"
            fs.put_file(str(file), temporary)
            fs.mv(temporary, path)

        call_store(self.url, request)

    def rename(self, target: RemotePath) -> RemotePath:
        """Copy within the store, then remove: not atomic, so use it only before the manifest is written."""
        target._check_writable()
        call_store(self.url, lambda fs, path: fs.cp_file(path, fs._strip_protocol(target.url)))
        self.unlink(missing_ok=True)
        return target

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield every file below whose name matches."""
        found = call_store(self.url, lambda fs, path: (fs.find(path), path))
        inside = sorted(str(name).strip("/").removeprefix(found[1].strip("/")).strip("/") for name in found[0])
        return (self / name for name in inside if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        self._check_writable()
        try:
            call_store(self.url, lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Remove everything below, object by object."""
        self._check_writable()
        found = call_store(self.url, lambda fs, path: fs.find(path))
        for name in sorted(found):
            call_store(self.url, partial(_remove_file, name))

    # ----------------------------------------------------------------------------------------------------- internals

    def _info(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = call_store(self.url, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return None
        return found

    def _list_entries(self) -> list[tuple[str, str]]:
        """Return (name, kind) of everything here, sorted by name; kind is `file` or `directory`."""
        try:
            found = call_store(self.url, lambda fs, path: (fs.ls(path, detail=True), path))
        except FileNotFoundError:
            return []
        entries, own = found
        named = {str(entry["name"]).strip("/"): str(entry["type"]) for entry in entries}
        named.pop(own.strip("/"), None)  # the marker object of the folder itself
        return sorted((name.rpartition("/")[2], kind) for name, kind in named.items())

    def _check_writable(self) -> None:
        for folder, check in list(write_guards.items()):
            if self.url.startswith(f"{folder}/"):
                check()


class RangeFile(io.RawIOBase):
    """A remote file that is read by range requests: only the requested bytes are fetched."""

    def __init__(self, path: RemotePath) -> None:
        super().__init__()
        self._path = path
        self._size = path.stat().st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        start, url = self._position, self._path.url
        found = bytes(call_store(url, lambda fs, path: fs.cat_file(path, start=start, end=end)))
        if len(found) != end - start:
            raise StorageFailed(
                f"{url} returned {len(found)} bytes instead of {end - start}: it was changed while it was read",
                fix="run again",
            )
        self._position = end
        return found

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


Location: TypeAlias = Path | RemotePath


def location(text: str | Path | RemotePath) -> Location:
    """Return the location for user input: a local path or a URL.

    Raises:
        UsageError: the URL has a password, a query or a fragment, or is a chain of URLs.
    """
    if not isinstance(text, str):
        return text
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            f"the URL {parts.scheme}://… has a password, a query or a fragment, which may contain secrets",
            fix="use the bare URL, and set the credentials in the environment (for S3: AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)",
        )
    if "::" in text:
        raise UsageError(
            f"the URL {text} is a chain of URLs", fix="use the URL of the store itself, such as s3://bucket/labels"
        )
    if parts.scheme in ("file", "local"):
        return Path(unquote(parts.path))
    return RemotePath(text.rstrip("/"))


def _remove_file(name: str, fs: Any, _: str) -> None:
    fs.rm_file(name)


def subfolders(folder: Location) -> list[Location]:
    """Return the folders inside a folder, sorted by name; none if it does not exist."""
    if isinstance(folder, RemotePath):
        return list(folder.folders())
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def move(source: Location, target: Location) -> None:
    """Rename a file in the same place: atomically on this machine, by copy and delete in a store."""
    if isinstance(source, RemotePath):
        source.rename(target if isinstance(target, RemotePath) else RemotePath(str(target)))
    else:
        source.rename(str(target))


def remove_tree(folder: Location) -> None:
    """Remove a folder and everything in it.

    Raises:
        OSError: a local folder does not exist or cannot be removed.
        StorageFailed: the store cannot be used.
    """
    if isinstance(folder, RemotePath):
        folder.remove_tree()
    else:
        shutil.rmtree(folder)


def files_below(folder: Location) -> list[str]:
    """Return the paths of all files and symlinks below a folder, relative to it."""
    if isinstance(folder, RemotePath):
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()]


def tree_size(folder: Location) -> int:
    """Return the size in bytes of all files below a folder; for a store, from its listing."""
    if isinstance(folder, RemotePath):
        return folder.tree_size()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def open_for_library(file: Location) -> Path | io.BufferedReader:
    """Return a file in a form that libraries accept: a local path, or a seekable stream of a remote file."""
    return file if isinstance(file, Path) else io.BufferedReader(file.open(), buffer_size=_PART)
