"""Find, read and check dataset versions.

    >>> dataset = open_dataset(Path("data/labels/words"))     # the newest finished version; or location("s3://...")
    >>> dataset.manifest.rows
    {'train': 9, 'validation': 3}
    >>> sum(batch.num_rows for batch in dataset.batches("train"))
    9

The labelling engine and writer.py write versions, through files.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.dataset.files import open_parquet
from stillhouse.dataset.manifest import FILE_NAME, FileEntry, FileKind, Manifest, read_manifest, version_label
from stillhouse.dataset.verify import verify_folder
from stillhouse.errors import DatasetMissing, DatasetRefused, UsageError
from stillhouse.recipe.dataset import VERSION, DatasetSettings
from stillhouse.records import SPLITS, Row, Split
from stillhouse.storage.location import Location, RemotePath, location, subfolders

if TYPE_CHECKING:
    import datasets
    import polars as pl

_BATCH_ROWS = 256
JOURNALS = "data/journals"  # for datasets that are not on this machine


@dataclass(frozen=True)
class Dataset:
    """One finished version."""

    folder: Location
    manifest: Manifest

    def files(self, *kinds: FileKind) -> list[FileEntry]:
        """The files of the given kinds (splits, or `rejected`), in order."""
        return [entry for entry in self.manifest.files if entry.kind in kinds]

    def open(self, entry: FileEntry) -> pq.ParquetFile:
        """Open one of its files for reading."""
        return open_parquet(self.folder / entry.path)

    def batches(self, split: Split) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split in batches of at most 256, in a fixed order.

        Raises:
            UsageError: there is no such split.
        """
        if split not in SPLITS:
            raise UsageError("there is no such split", setting="split", value=split, fix="use train or validation")
        for entry in self.files(split):
            with self.open(entry) as parquet:
                yield from parquet.iter_batches(batch_size=_BATCH_ROWS)

    def rows(self, split: Split = "train") -> Iterator[Row]:
        """Yield the rows of a split as dictionaries, in a fixed order."""
        for batch in self.batches(split):
            yield from batch.to_pylist()

    def to_table(self, split: Split = "train") -> pa.Table:
        """Return a split as one Arrow table; the table is empty if the split has no rows."""
        batches = list(self.batches(split))
        if batches:
            return pa.Table.from_batches(batches)
        for entry in self.files(*SPLITS):
            with self.open(entry) as parquet:
                return parquet.schema_arrow.empty_table()
        return pa.table({})

    def to_polars(self, split: Split = "train") -> pl.DataFrame:
        """Return a split as a Polars data frame.

        Raises:
            UsageError: Polars is not installed.
        """
        try:
            import polars
        except ModuleNotFoundError:
            raise UsageError("Dataset.to_polars needs the library polars", fix="run `pip install polars`") from None
        frame = polars.from_arrow(self.to_table(split))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_hf(self, split: Split = "train") -> datasets.Dataset:
        """Return a split as a data set of the Hugging Face library `datasets`."""
        import datasets

        return datasets.Dataset(self.to_table(split))

    def problems(self) -> list[str]:
        """Return how the folder differs from the manifest (see verify.py); empty if it does not."""
        return verify_folder(self.folder, self.manifest)

    def check(self) -> None:
        """Check that the version's files are unchanged since it was written.

        Raises:
            DatasetRefused: a file or the manifest has changed; the message has the first problem.
        """
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DatasetRefused(
                f"dataset {self.manifest.label} is damaged: {problems[0]}{more}",
                fix=f"restore the file from a copy, or delete the folder {self.folder} and label again",
            )


def dataset_folder(settings: DatasetSettings) -> Location:
    """Return the folder with all versions of a recipe's dataset."""
    return location(settings.root) / settings.name


def journal_folder(settings: DatasetSettings) -> Path:
    """Return the local folder of a dataset's journal: `settings.journal`, next to local versions, or data/journals."""
    folder = dataset_folder(settings)
    if settings.journal is None and isinstance(folder, Path):
        return folder
    named = folder.resolve() if isinstance(folder, Path) else folder
    digest = hashlib.sha256(str(named).encode()).hexdigest()[:12]
    return Path(settings.journal or JOURNALS) / f"{settings.name}-{digest}"


def versions(folder: Location) -> list[int]:
    """Return the numbers of the finished versions, oldest first."""
    return [number for number in started_versions(folder) if (folder / version_label(number) / FILE_NAME).is_file()]


def started_versions(folder: Location) -> list[int]:
    """Return the numbers of all versions that have a folder, finished or not, oldest first."""
    return sorted(int(match[1]) for path in subfolders(folder) if (match := re.fullmatch(r"v(\d{3,})", path.name)))


def open_dataset(folder: Location, version: int | None = None) -> Dataset:
    """Open a finished version of the dataset in `folder`, the newest by default.

    Raises:
        DatasetMissing: the folder has no finished version, or not the requested one.
        DatasetRefused: the manifest cannot be read.
    """
    finished = versions(folder)
    if not finished:
        raise DatasetMissing(f"{folder} has no finished dataset", fix="run `stillhouse label` with this recipe first")
    if version is not None and version not in finished:
        listed = ", ".join(version_label(number) for number in finished)
        raise DatasetMissing(
            f"{folder} has only the versions {listed}", setting="dataset.version", value=version, fix="use one of them"
        )
    chosen = folder / version_label(version if version is not None else finished[-1])
    return Dataset(chosen, read_manifest(chosen))


def find_dataset(root: Location, label: str) -> Dataset:
    """Find a dataset by user input: a name under `root`, name/v001 (or name/v1), or the folder or URL of either.

    Raises:
        DatasetMissing: no finished dataset matches `label`.
        DatasetRefused: the manifest cannot be read.
    """
    for typed in dict.fromkeys((label, _expand_version(label))):
        given = location(typed)
        candidates = [given] if isinstance(given, RemotePath) or given.is_absolute() else [root / typed, given]
        for base in candidates:
            if (base / FILE_NAME).is_file():
                return Dataset(base, read_manifest(base))
            if versions(base):
                return open_dataset(base)
    known = ", ".join(dataset.manifest.label for dataset in all_datasets(root))
    raise DatasetMissing(
        f"the dataset {label!r} does not exist, neither under {root} nor as a folder",
        fix=f"choose one of the finished datasets: {known}" if known else "label a recipe, or give another --root",
    )


def _expand_version(label: str) -> str:
    """Return `words/v1` as words/v001, the version's folder; any other label unchanged."""
    name, slash, version = label.rstrip("/").rpartition("/")
    named = VERSION.fullmatch(version) if slash else None
    return f"{name}/{version_label(int(named[1]))}" if named else label


def all_datasets(root: Location) -> list[Dataset]:
    """Open every finished version under `root`, sorted by name and version."""
    return [open_dataset(folder, number) for folder in subfolders(root) for number in versions(folder)]
