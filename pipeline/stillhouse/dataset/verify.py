"""Check that a dataset version is unchanged since it was written, and list every difference.

    >>> verify_folder(dataset.folder, dataset.manifest)         # no differences
    []

Checked against the manifest: each file exists under its name with the right size, checksum and number of rows; there are no
other files; the counts add up; and the manifest matches its own checksum. Files that operating systems and hub clients
leave in a folder are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.dataset.files import SHARD_NAME
from stillhouse.dataset.manifest import EXTRA_FILES, FILE_NAME, ExtraEntry, FileEntry, Manifest, read_seal
from stillhouse.errors import DatasetError
from stillhouse.storage.durable import sha256_of_file
from stillhouse.storage.location import Location, files_below

_IGNORED = re.compile(  # files that may be in a folder without being part of a version
    r"(.*/)?\.[^/]+\.\d+\.tmp"  # left by a killed writer
    r"|(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini)"
    r"|\.gitattributes|\.cache/huggingface/.*"  # in a copy that was downloaded from a hub
)
_SHARD = re.compile(r"(data|rejected)/" + SHARD_NAME.pattern)


def verify_folder(folder: Location, manifest: Manifest) -> list[str]:
    """Return the differences between a version's folder and its manifest, one sentence each; empty if there are none."""
    try:
        seal = read_seal(folder)
    except DatasetError as error:
        return [str(error).rstrip(".")]
    entries: list[FileEntry | ExtraEntry] = [*manifest.files, *seal.extras]
    found = {entry.path: _problem(folder, entry) for entry in entries}
    unknown = _unlisted_files(folder, set(found))
    found |= _find_renamed(folder, [entry for entry in entries if not (folder / entry.path).is_file()], unknown)
    problems = [f"{path} {problem}" for path, problem in found.items() if problem]
    problems += [f"{path} is not in the manifest: move it to another folder" for path in unknown]
    return problems + _count_problems(manifest)


def missing_files(folder: Location, manifest: Manifest) -> list[str]:
    """Return the files that are missing or have the wrong size; no file is read."""
    problems = ((entry.path, _size_problem(folder / entry.path, entry)) for entry in manifest.files)
    return [f"{path} {problem}" for path, problem in problems if problem]


def foreign_files(folder: Location, manifest: Manifest | None) -> list[str]:
    """Return the files in a version's folder that Stillhouse did not write: not in the manifest and not named as a shard.

    Args:
        manifest: the version's manifest; None if it cannot be read or the version is unfinished.
    """
    listed = {entry.path for entry in manifest.files} if manifest else set()
    ours = {FILE_NAME, *EXTRA_FILES, *listed}
    return sorted(
        path
        for path in files_below(folder)
        if path not in ours and not _SHARD.fullmatch(path) and not _IGNORED.fullmatch(path)
    )


def _problem(folder: Location, entry: FileEntry | ExtraEntry) -> str | None:
    file = folder / entry.path
    if problem := _size_problem(file, entry):
        return problem + (_row_count_problem(file, entry, ", and ") if file.is_file() else "")
    digest = sha256_of_file(file)
    if digest != entry.sha256:
        return f"has sha256 {digest[:12]}…, and the manifest lists {entry.sha256[:12]}…"
    return _row_count_problem(file, entry) or None


def _size_problem(file: Location, entry: FileEntry | ExtraEntry) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    return None if size == entry.bytes else f"has {size} bytes, and the manifest lists {entry.bytes}"


def _row_count_problem(file: Location, entry: FileEntry | ExtraEntry, before: str = "") -> str:
    """Report a wrong number of rows or an unreadable Parquet file, after `before`; empty if the number is right.

    With `before`, an unreadable file is not reported: its other problem already is.
    """
    if isinstance(entry, ExtraEntry):
        return ""
    try:
        with file.open("rb") as stream:
            rows = pq.read_metadata(stream).num_rows
    except (pa.ArrowException, OSError, ValueError, MemoryError):  # raised for a damaged footer
        return "" if before else "is not a Parquet file"
    return "" if rows == entry.rows else f"{before}has {rows} rows, and the manifest lists {entry.rows}"


def _unlisted_files(folder: Location, listed: set[str]) -> list[str]:
    """Return the files that the manifest does not list."""
    known = listed | {FILE_NAME}
    return sorted(path for path in files_below(folder) if path not in known and not _IGNORED.fullmatch(path))


def _find_renamed(folder: Location, missing: Sequence[FileEntry | ExtraEntry], unknown: list[str]) -> Mapping[str, str]:
    """Find missing files under another name by checksum, and remove those names from `unknown`."""
    found: dict[str, str] = {}
    sizes = {path: (folder / path).stat().st_size for path in unknown if (folder / path).is_file()} if missing else {}
    for entry in missing:
        for path in [path for path in unknown if sizes.get(path) == entry.bytes]:
            if sha256_of_file(folder / path) == entry.sha256:
                found[entry.path] = f"was renamed to {path}: restore its name"
                unknown.remove(path)
                break
    return found


def _count_problems(manifest: Manifest) -> list[str]:
    """Return where the manifest's row counts do not match its list of files."""
    listed: Counter[str] = Counter()
    for entry in manifest.files:
        listed[entry.kind] += entry.rows
    counted = Counter(manifest.rows) + Counter(rejected=sum(manifest.rejected.values()))
    return [
        f"{FILE_NAME} counts {counted[kind]} rows of {kind}, and its files have {listed[kind]}"
        for kind in sorted({*listed, *counted})
        if listed[kind] != counted[kind]
    ]
