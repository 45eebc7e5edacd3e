"""List every finished version under a root folder, damaged ones included, and remove versions.

    >>> root = Path("data/labels")
    >>> [(one.label, one.damage) for one in catalog(root)]
    [('words/v001', None)]
    >>> remove(root, find_versions(root, "words/v001"))
    True
    >>> catalog(root)
    []

Listing reads manifests and checks that files exist with the right size, but does not read their content; `verify` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stillhouse.dataset.manifest import FILE_NAME, Manifest, read_manifest, version_label
from stillhouse.dataset.store import started_versions, versions
from stillhouse.dataset.verify import foreign_files, missing_files
from stillhouse.errors import DatasetError, DatasetMissing, DatasetRefused, UsageError
from stillhouse.recipe.dataset import NAME_PATTERN
from stillhouse.settings import nearest
from stillhouse.storage.durable import fsync_folder, write_lock
from stillhouse.storage.location import Location, remove_tree, subfolders, tree_size

_LABEL = re.compile(rf"(?P<name>{NAME_PATTERN})(/v(?P<version>\d+))?")


@dataclass(frozen=True)
class CatalogEntry:
    """One version as found on disk. `manifest` is None if it cannot be read; `damage` says what is wrong, if anything."""

    name: str
    version: int
    folder: Location
    bytes: int
    manifest: Manifest | None
    damage: str | None = None

    @property
    def label(self) -> str:
        """The version's name as name/v001, taken from its folder."""
        return f"{self.name}/{version_label(self.version)}"

    @property
    def parents(self) -> tuple[str, ...]:
        return self.manifest.parents if self.manifest else ()


def catalog(root: Location) -> list[CatalogEntry]:
    """Return every finished version under `root`, sorted by name and version."""
    return [_read_entry(folder, number) for folder in subfolders(root) for number in versions(folder)]


def find_versions(root: Location, label: str, *, every: bool = False) -> list[CatalogEntry]:
    """Return the versions to remove for `label`, a name or name/v001.

    A label with a version may also name an unfinished or partly removed version. A name alone means its only finished
    version, or all finished versions if `every` is true.

    Raises:
        UsageError: `label` is not a valid name, names one version although `every` is true, or is a bare name with several
            versions.
        DatasetMissing: the version does not exist, or the name has no finished version.
    """
    match = _LABEL.fullmatch(label.rstrip("/"))
    if match is None:
        raise UsageError(
            f"{label!r} is not a valid name of a dataset", fix="use a name, or a version such as name/v001"
        )
    name, version = match["name"], match["version"]
    base = root / name
    if version is not None:
        if every:
            raise UsageError(
                f"{label} is one version, and --all removes every version",
                setting="--all",
                fix=f"use the name alone, {name}, or remove --all",
            )
        if int(version) not in started_versions(base):
            raise DatasetMissing(f"{label} does not exist under {root}", fix=_suggestion(root, label))
        return [_read_entry(base, int(version))]
    finished = versions(base)
    if not finished:
        raise DatasetMissing(f"{name!r} has no finished version under {root}", fix=_suggestion(root, name))
    if len(finished) > 1 and not every:
        listed = ", ".join(f"{name}/{version_label(number)}" for number in finished)
        raise UsageError(
            f"{name} has {len(finished)} versions: {listed}", fix="name one of them, or remove all of them with --all"
        )
    return [_read_entry(base, number) for number in finished]


def remove(root: Location, listed: Sequence[CatalogEntry], confirm: Callable[[], bool] = lambda: True) -> bool:
    """Remove versions, newest first; each manifest is deleted first, so that a partly removed version no longer counts.

    Args:
        root: the folder of all datasets; its manifests are read to find the children of these versions.
        listed: the versions to remove.
        confirm: called after all checks have passed; nothing is removed if it returns False.

    Returns:
        Whether they were removed.

    Raises:
        DatasetRefused: a version that stays was made from one of them, or a folder is a symlink or has files that
            Stillhouse did not write.
        DatasetBusy: another run is writing one of these datasets.
        StorageFailed: a folder cannot be written.
    """
    with ExitStack() as locks:
        for base in dict.fromkeys(one.folder.parent for one in listed):
            locks.enter_context(write_lock(base))
        _check_no_children(root, listed)
        for one in listed:
            _check_no_foreign_files(one)
        if not confirm():
            return False
        for one in sorted(listed, key=lambda one: (one.name, -one.version)):
            _remove_folder(one.folder)
    return True


# --------------------------------------------------------------------------------------------------------------- helpers


def _check_no_children(root: Location, listed: Sequence[CatalogEntry]) -> None:
    """Raise DatasetRefused if a version that stays has one of these versions as a parent."""
    removed = {one.label for one in listed}
    remaining = [other for other in catalog(root) if other.label not in removed]
    for one in listed:
        names = {one.label} | ({one.manifest.label} if one.manifest else set())
        children = [other.label for other in remaining if names & set(other.parents)]
        if children:
            raise DatasetRefused(
                f"{one.label} is a parent of {', '.join(children)}, whose rows could no longer be traced back",
                fix="remove the children first, or keep both",
            )


def _check_no_foreign_files(one: CatalogEntry) -> None:
    """Raise DatasetRefused if the folder is a symlink or has files that Stillhouse did not write."""
    if isinstance(one.folder, Path) and one.folder.is_symlink():
        raise DatasetRefused(
            f"{one.folder} is a symbolic link to {one.folder.readlink()}", fix="remove the link yourself"
        )
    foreign = foreign_files(one.folder, one.manifest)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise DatasetRefused(
            f"{one.label} is not removed: its folder {one.folder} has files that Stillhouse did not write "
            f"({', '.join(foreign[:3])}{more})",
            fix="move them to another folder first",
        )


def _read_entry(base: Location, number: int) -> CatalogEntry:
    folder = base / version_label(number)
    size = tree_size(folder)
    try:
        manifest = read_manifest(folder)
    except DatasetError as error:
        return CatalogEntry(base.name, number, folder, size, None, str(error))
    except OSError as error:
        return CatalogEntry(
            base.name, number, folder, size, None, f"{folder / FILE_NAME} cannot be read: {error.strerror}"
        )
    problems = missing_files(folder, manifest)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return CatalogEntry(base.name, number, folder, size, manifest, problems[0] + more if problems else None)


def _remove_folder(folder: Location) -> None:
    manifest = folder / FILE_NAME
    if manifest.exists():
        manifest.unlink()
        fsync_folder(folder)
    remove_tree(folder)
    fsync_folder(folder.parent)


def _suggestion(root: Location, label: str) -> str | None:
    return nearest(label, [one.label for one in catalog(root)], "give another --root, where datasets exist")
