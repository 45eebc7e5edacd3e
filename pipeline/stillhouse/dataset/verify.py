"""Is a dataset version still as it was written? Every way in which it is not is named.

    problems = folder_problems(folder, manifest)         # [] where all is well

What is held against the manifest: that each file is there, under its name, with its bytes, its checksum and its rows; that
no other file is; that the counts add up; and the manifest against its own checksum. What a system or a hub's client leaves
behind in a folder is no problem.
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

_NO_PART = re.compile(  # what lies in a folder without being part of a version
    r"(.*/)?\.[^/]+\.\d+\.tmp"  # left by a killed writer
    r"|(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini)"
    r"|\.gitattributes|\.cache/huggingface/.*"  # of a copy that came from a hub
)
_SHARD = re.compile(r"(data|rejected)/" + SHARD_NAME.pattern)


def folder_problems(folder: Location, manifest: Manifest) -> list[str]:
    """What is wrong with a version's folder against its manifest, one sentence a problem; empty where all is well."""
    try:
        seal = read_seal(folder)
    except DatasetError as error:
        return [str(error).rstrip(".")]
    entries: list[FileEntry | ExtraEntry] = [*manifest.files, *(seal.extras or ())]
    found = {entry.path: _problem(folder, entry) for entry in entries}
    unknown = _unknown_files(folder, set(found), older=seal.extras is None)
    found |= _renamed(folder, [entry for entry in entries if not (folder / entry.path).is_file()], unknown)
    problems = [f"{path} {problem}" for path, problem in found.items() if problem]
    problems += [f"{path} is not in the manifest: it belongs elsewhere" for path in unknown]
    return problems + _miscounted(manifest)


def missing_files(folder: Location, manifest: Manifest) -> list[str]:
    """What can be told at a glance, without reading a file: those that are not there, or of another size."""
    problems = ((entry.path, _size_problem(folder / entry.path, entry)) for entry in manifest.files)
    return [f"{path} {problem}" for path, problem in problems if problem]


def files_of_others(folder: Location, manifest: Manifest | None) -> list[str]:
    """The files of a version's folder that Stillhouse did not write: no manifest lists them, and no shard is named so.

    Args:
        manifest: None where it cannot be read, or where the version was never finished.
    """
    listed = {entry.path for entry in manifest.files} if manifest else set()
    ours = {FILE_NAME, *EXTRA_FILES, *listed}
    return sorted(
        path
        for path in files_below(folder)
        if path not in ours and not _SHARD.fullmatch(path) and not _NO_PART.fullmatch(path)
    )


def has_seal(folder: Location) -> bool:
    """Whether the manifest knows the checksums of itself, the card and the recipe; those of earlier releases do not."""
    return read_seal(folder).manifest_sha256 is not None


def _problem(folder: Location, entry: FileEntry | ExtraEntry) -> str | None:
    file = folder / entry.path
    if problem := _size_problem(file, entry):
        return problem + (_other_rows(file, entry, ", and ") if file.is_file() else "")
    digest = sha256_of_file(file)
    if digest != entry.sha256:
        return f"has sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…"
    return _other_rows(file, entry) or None


def _size_problem(file: Location, entry: FileEntry | ExtraEntry) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    return None if size == entry.bytes else f"has {size} bytes, the manifest says {entry.bytes}"


def _other_rows(file: Location, entry: FileEntry | ExtraEntry, before: str = "") -> str:
    """That a Parquet file has another number of rows; empty where it has not, or where nobody can tell."""
    if isinstance(entry, ExtraEntry):
        return ""
    try:
        with file.open("rb") as stream:
            rows = pq.read_metadata(stream).num_rows
    except (pa.ArrowException, OSError, ValueError, MemoryError):  # of a damaged footer
        return "" if before else "is no Parquet file"
    return "" if rows == entry.rows else f"{before}has {rows} rows, the manifest says {entry.rows}"


def _unknown_files(folder: Location, known: set[str], *, older: bool) -> list[str]:
    """Files that no one wrote down; the card and the recipe of an older version are not among them."""
    known = known | {FILE_NAME} | (set(EXTRA_FILES) if older else set())
    return sorted(path for path in files_below(folder) if path not in known and not _NO_PART.fullmatch(path))


def _renamed(folder: Location, missing: Sequence[FileEntry | ExtraEntry], unknown: list[str]) -> Mapping[str, str]:
    """Where a missing file lies under another name, by its checksum; that name is then no unknown one any more."""
    found: dict[str, str] = {}
    sizes = {path: (folder / path).stat().st_size for path in unknown if (folder / path).is_file()} if missing else {}
    for entry in missing:
        for path in [path for path in unknown if sizes.get(path) == entry.bytes]:
            if sha256_of_file(folder / path) == entry.sha256:
                found[entry.path] = f"was renamed to {path}: give it back its name"
                unknown.remove(path)
                break
    return found


def _miscounted(manifest: Manifest) -> list[str]:
    """Where the manifest's counts do not add up with its own list of files."""
    listed: Counter[str] = Counter()
    for entry in manifest.files:
        listed[entry.kind] += entry.rows
    said = Counter(manifest.rows) + Counter(rejected=sum(manifest.rejected.values()))
    return [
        f"{FILE_NAME} says {said[kind]} rows of {kind}, and its files have {listed[kind]}"
        for kind in sorted({*listed, *said})
        if listed[kind] != said[kind]
    ]
