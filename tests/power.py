"""A power failure, as the strictest file system would have it: of a folder, what would be there when the power is back.

    with PowerFailures(tmp_path) as disk:
        write_atomically(tmp_path / "a" / "file", b"content")
        disk.survivors()      # {"a/file": b"content"}: name and content of every file that outlasts it now

A file's content counts as it was when the file was last synced, and not at all before; a name in a folder (new, renamed or
removed) counts from when that folder was synced. Both are taken at the time of `os.fsync`, from what the kernel has: bytes
that Python still holds in a buffer are lost. What lay there when the block began is on the disk.

SQLite syncs by itself, past `os.fsync`: its files are seen here as they were when the block began.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

Files = dict[str, bytes]
Check = Callable[[Files], None]


class PowerFailures:
    """Stands in for `os.fsync` while its block lasts; `check` is called with the survivors after each of its calls."""

    def __init__(self, root: Path, check: Check = lambda _: None) -> None:
        self._root = root
        self._check = check
        self._fsync = os.fsync
        self._patch = pytest.MonkeyPatch()
        self._contents: dict[int, bytes] = {}  # of files, by inode
        self._names: dict[
            int, dict[str, tuple[int, bool]]
        ] = {}  # of folders, by inode: name -> inode, whether a folder
        self._held: dict[int, int] = {}  # a handle of each inode, so that its number is given to no other file

    def __enter__(self) -> PowerFailures:
        for path in [self._root, *self._root.rglob("*")]:
            if path.is_dir() or path.is_file():
                self._note(self._opened(path))
        self._patch.setattr(os, "fsync", self._synced)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()
        for handle in self._held.values():
            os.close(handle)

    def survivors(self) -> Files:
        """Every file below the root that a power failure would leave, by its way from there."""
        found: Files = {}
        waiting = [("", self._root.stat().st_ino)]
        while waiting:
            place, folder = waiting.pop()
            for name, (inode, is_folder) in self._names.get(folder, {}).items():
                way = f"{place}{name}"
                if is_folder:
                    waiting.append((f"{way}/", inode))
                else:
                    found[way] = self._contents.get(inode, b"")
        return found

    def _synced(self, handle: int) -> None:
        self._fsync(handle)
        self._note(self._opened(f"/proc/self/fd/{handle}"))
        self._check(self.survivors())

    def _opened(self, path: str | Path) -> int:
        """A handle to read with, which stays open."""
        handle = os.open(path, os.O_RDONLY)
        first = self._held.setdefault(os.fstat(handle).st_ino, handle)
        if first != handle:
            os.close(handle)
        return first

    def _note(self, handle: int) -> None:
        """What is on the disk of a file or folder from now on."""
        about = os.fstat(handle)
        if not stat.S_ISDIR(about.st_mode):
            self._contents[about.st_ino] = os.pread(handle, about.st_size, 0)
            return
        names = self._names[about.st_ino] = {}
        with os.scandir(handle) as entries:
            for entry in entries:
                if not entry.is_symlink():
                    self._opened(f"/proc/self/fd/{handle}/{entry.name}")
                    names[entry.name] = (entry.inode(), entry.is_dir())


def whole_versions(files: Files) -> list[str]:
    """The manifests of datasets among the survivors; each has every file that it names, with the content that it names."""
    found = [way for way in files if way.endswith("/manifest.json")]
    for way in found:
        folder = way.removesuffix("manifest.json")
        manifest = json.loads(files[way])
        for entry in [*manifest["files"], *manifest["extras"]]:
            content = files.get(folder + entry["path"])
            assert content is not None, f"{way} is on the disk, and {entry['path']} has not that name there"
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], f"{entry['path']} is not whole on the disk"
    return found
