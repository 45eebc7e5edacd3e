"""Write a dataset version without a teacher: from rows of other versions or of imported files.

    origin = Origin(made_by="merge", how="a/v001 and b/v002", teacher=teacher, parents=("a/v001", "b/v002"))
    with new_version(root, "merged", origin) as version:
        version.add("train", rows)
    version.dataset.manifest.rows

Labelling writes versions itself (labelling/job.py) in the same order: lock, Parquet files, card, and the manifest last.
If the block fails, the version does not exist and its folder is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

import stillhouse
from stillhouse.dataset.card import write_card
from stillhouse.dataset.columns import completion_schema, rejection_schema
from stillhouse.dataset.files import ShardFiles, count_files
from stillhouse.dataset.manifest import FileEntry, MadeBy, Manifest, version_label, write_manifest
from stillhouse.dataset.store import Dataset, started_versions
from stillhouse.errors import StorageFailed
from stillhouse.recipe.label import SamplingSettings, SoftSettings, encoding_of
from stillhouse.records import FORMAT_VERSION, Split, TeacherIdentity, content_hash, utc_now
from stillhouse.storage.durable import fsync_folder, write_lock
from stillhouse.storage.location import Location, move, remove_tree

_SHARD_ROWS = 20_000
_SHARD_BYTES = 256 << 20  # in memory; a shard ends at the first of these two limits


@dataclass(frozen=True)
class Origin:
    """Where a version's rows come from: the fields of its manifest other than the counts."""

    made_by: MadeBy
    how: str  # a description: the condition of a filter, the imported file
    teacher: TeacherIdentity
    more_teachers: tuple[TeacherIdentity, ...] = ()
    parents: tuple[str, ...] = ()  # as name/v001
    soft: SoftSettings | None = None
    mode: Literal["generate", "score"] | None = None
    sampling: SamplingSettings | None = None
    licence: str | None = None


class NewVersion:
    """A version being written; `dataset` is set when the block of `new_version` has ended."""

    dataset: Dataset

    def __init__(self, folder: Location, origin: Origin) -> None:
        self._folder = folder
        self.origin = origin
        self.schema = completion_schema(soft=encoding_of(origin.soft))
        self._no_rejections = rejection_schema(soft=encoding_of(origin.soft)).empty_table()
        self._waiting: dict[Split, list[pa.RecordBatch]] = {}
        self._shards: dict[Split, int] = {}
        self._prompts: set[bytes] = set()
        self._rows = hashlib.sha256()  # of the rows' ids, in order

    def add(self, split: Split, rows: pa.RecordBatch) -> None:
        """Add rows with exactly the columns of `schema`; a full shard is written at once.

        Raises:
            StorageFailed: the rows cannot be written.
        """
        if not rows.num_rows:
            return
        waiting = self._waiting.setdefault(split, [])
        waiting.append(rows.cast(self.schema))
        for id_, prompt in zip(rows.column("id").to_pylist(), rows.column("prompt_id").to_pylist(), strict=True):
            self._rows.update(f"{split}:{id_}\n".encode())
            self._prompts.add(prompt.encode())
        if sum(batch.num_rows for batch in waiting) >= _SHARD_ROWS or sum(b.nbytes for b in waiting) >= _SHARD_BYTES:
            self._write(split)

    def finish(self, name: str, number: int) -> None:
        """Write the buffered rows, the card and, last, the manifest."""
        for split in list(self._waiting):
            self._write(split)
        entries = self._rename_files()
        counts = count_files(self._folder, entries)
        origin = self.origin
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            version=number,
            created_at=utc_now(),
            stillhouse=stillhouse.__version__,
            made_by=origin.made_by,
            how=origin.how,
            licence=origin.licence,
            teacher=origin.teacher,
            more_teachers=origin.more_teachers,
            mode=origin.mode,
            sampling=origin.sampling,
            soft=origin.soft,
            plan_sha256=content_hash([origin.made_by, origin.how, origin.parents, self._rows.hexdigest()]),
            prompts_sha256=content_hash(sorted(prompt.decode() for prompt in self._prompts)),
            prompts=len(self._prompts),
            duplicate_prompts=0,
            rows=counts.rows,
            rejected=counts.rejected,
            totals=counts.totals,
            parents=origin.parents,
            recipe={},
            files=tuple(entries),
        )
        write_card(self._folder, manifest)
        write_manifest(self._folder, manifest)
        self.dataset = Dataset(self._folder, manifest)

    def _write(self, split: Split) -> None:
        if not self._waiting[split]:
            return
        index = self._shards.get(split, 0)
        rows = pa.Table.from_batches(self._waiting[split], self.schema)
        self._files(split, index, 0).write(rows, self._no_rejections, self._rows.hexdigest())
        self._shards[split], self._waiting[split] = index + 1, []

    def _rename_files(self) -> list[FileEntry]:
        """Rename the files to their final names, which include the number of shards, and list them."""
        entries: list[FileEntry] = []
        for split, count in self._shards.items():
            for index in range(count):
                files = self._files(split, index, count)
                move(self._files(split, index, 0).data, files.data)
                entries += files.entries()
        if entries:
            fsync_folder(self._folder / "data")
        return entries

    def _files(self, split: Split, index: int, shard_count: int) -> ShardFiles:
        return ShardFiles(self._folder, split, index, shard_count)


@contextmanager
def new_version(root: Location, name: str, origin: Origin) -> Iterator[NewVersion]:
    """Write the next version of the dataset `name` under `root`.

    Raises:
        DatasetBusy: another process is writing this dataset.
        StorageFailed: the disk is full, or the folder cannot be written.
    """
    base = root / name
    with write_lock(base):
        number = max(started_versions(base), default=0) + 1
        folder = base / version_label(number)
        try:
            version = NewVersion(folder, origin)
            yield version
            version.finish(name, number)
        except BaseException:
            with suppress(OSError, StorageFailed):
                remove_tree(folder)
            raise
