"""Find, read and check dataset versions.

    dataset = open_dataset(Path("data/labels/quickstart"))         # the newest finished version
    for batch in dataset.batches("train"): ...                     # pyarrow record batches

Writing is the labelling engine's, through `files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DatasetSettings
from pipeline.dataset.manifest import FILE_NAME, FileEntry, FileKind, Manifest, read_manifest, version_label
from pipeline.durable import sha256_of_file
from pipeline.errors import DatasetMissing, DatasetRefused
from pipeline.records import Split

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Dataset:
    """One finished version."""

    folder: Path
    manifest: Manifest

    def files(self, *kinds: FileKind) -> list[FileEntry]:
        """The files of the given kinds (splits, or `rejected`), in order."""
        return [entry for entry in self.manifest.files if entry.kind in kinds]

    def open(self, entry: FileEntry) -> pq.ParquetFile:
        """One of its files, to be read."""
        return pq.ParquetFile(self.folder / entry.path)

    def batches(self, split: Split) -> Iterator[pa.RecordBatch]:
        """The rows of a split, some hundred at a time, in a fixed order."""
        for entry in self.files(split):
            with self.open(entry) as parquet:
                yield from parquet.iter_batches(batch_size=_BATCH_ROWS)

    def problems(self) -> list[str]:
        """What is wrong with the files, against the manifest; empty where all is well."""
        return [problem for entry in self.manifest.files if (problem := self._problem(entry))]

    def check(self) -> None:
        """Refuse a dataset that is not as it was written.

        Raises:
            DatasetRefused: with the first problem.
        """
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DatasetRefused(
                f"dataset {self.manifest.label}: {problems[0]}{more}. Restore the file from a copy, or delete the folder "
                f"{self.folder} and label again."
            )

    def _problem(self, entry: FileEntry) -> str | None:
        file = self.folder / entry.path
        if not file.is_file():
            return f"{entry.path} is missing"
        size = file.stat().st_size
        if size != entry.bytes:
            return f"{entry.path} has {size} bytes, the manifest says {entry.bytes}"
        digest = sha256_of_file(file)
        if digest != entry.sha256:
            return f"{entry.path} has sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…"
        return None


def dataset_folder(settings: DatasetSettings) -> Path:
    """The folder that holds every version of a recipe's dataset."""
    return Path(settings.root) / settings.name


def versions(folder: Path) -> list[int]:
    """The finished versions, oldest first."""
    return [number for number in started_versions(folder) if (folder / version_label(number) / FILE_NAME).is_file()]


def started_versions(folder: Path) -> list[int]:
    """Every version that has a folder, finished or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"v(\d{3,})", path.name)))


def open_dataset(folder: Path, version: int | None = None) -> Dataset:
    """A finished version of the dataset in `folder`, the newest unless one is named.

    Raises:
        DatasetMissing: there is none.
        DatasetRefused: its manifest cannot be read.
    """
    finished = versions(folder)
    if not finished:
        raise DatasetMissing(f"there is no finished dataset in {folder}: run `stillhouse label` with this recipe first")
    if version is not None and version not in finished:
        listed = ", ".join(version_label(number) for number in finished)
        raise DatasetMissing(f"dataset.version is {version}, and {folder} has only {listed}")
    chosen = folder / version_label(version if version is not None else finished[-1])
    return Dataset(chosen, read_manifest(chosen))


def find_dataset(root: Path, label: str) -> Dataset:
    """A dataset by what a person types: a name under `root`, name/v001, or the folder of either.

    Raises:
        DatasetMissing: there is none.
    """
    for base in (root / label, Path(label)):
        if (base / FILE_NAME).is_file():
            return Dataset(base, read_manifest(base))
        if versions(base):
            return open_dataset(base)
    known = ", ".join(dataset.manifest.label for dataset in all_datasets(root)) or "none"
    raise DatasetMissing(f"there is no dataset {label!r}, under {root} or as a folder. Finished ones: {known}.")


def all_datasets(root: Path) -> list[Dataset]:
    """Every finished version under `root`, by name and version."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [open_dataset(folder, number) for folder in folders for number in versions(folder)]
