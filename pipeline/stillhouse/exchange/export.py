"""Export a dataset to another project's format: a folder with one file per split, and a note of its origin.

    >>> exported = export_dataset(dataset, "sharegpt", Path("out"))
    >>> exported.rows
    {'train': 9, 'validation': 3}

The export is atomic: a temporary folder next to the target is written and then renamed. An existing folder that is not
empty is replaced only with `force`, and only if an export wrote it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import stillhouse
from stillhouse.dataset.store import Dataset
from stillhouse.errors import StorageFailed, UsageError
from stillhouse.exchange.base import ExportOptions, ExportPlan, FileType
from stillhouse.exchange.find_format import find_format
from stillhouse.exchange.lines import NOTE
from stillhouse.inputs.plain_json import to_json
from stillhouse.inputs.user_files import Unreadable, decode_text, parse_json
from stillhouse.records import SPLITS, Split, is_complete
from stillhouse.storage.durable import atomic_file, fsync_folder, make_folder, sha256_of_file, write_atomically

_ROWS_AT_ONCE = 64  # rows with soft labels are large


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    folder: Path
    files: tuple[Path, ...]
    rows: dict[str, int]  # split -> rows
    left_out: int  # rows that the format cannot hold
    why_left_out: str
    notes: tuple[str, ...]


def export_dataset(
    dataset: Dataset, to: str, folder: Path, options: ExportOptions | None = None, *, force: bool = False
) -> Exported:
    """Write every split of a dataset to `folder`.

    Raises:
        UsageError: the format does not exist or cannot hold the dataset, or the folder exists and may not be replaced.
        DatasetRefused: the dataset is damaged.
        StorageFailed: the disk is full, or the folder cannot be written.
    """
    options = options or ExportOptions()
    format_ = find_format("--to", to)
    plan = format_.plan_export(dataset, options)
    notes = (*plan.notes, *([] if format_.soft else _truncation_notes(dataset)))
    file_type = _file_type(to, plan, options)
    _check_replaceable(folder, force)
    dataset.check()
    rows: dict[str, int] = {}
    skipped = 0
    with _atomic_folder(folder) as temporary:
        for split in SPLITS:
            if dataset.files(split):
                path = temporary / f"{split}.{file_type}"
                written = sum(_write(dataset, split, plan, file_type, path))
                rows[split] = written
                skipped += dataset.manifest.rows.get(split, 0) - written
        for name, content in plan.extra_files.items():
            write_atomically(temporary / name, content)
        names = sorted(path.name for path in temporary.iterdir())
        write_atomically(temporary / NOTE, _note(dataset, to, temporary, names, rows))
    files = tuple(folder / name for name in [*names, NOTE])
    return Exported(folder, files, rows, skipped, plan.why_skipped if skipped else "", notes)


def read_note(file: Path) -> dict[str, Any]:
    """Read the export note in the folder of `file`; empty if no export wrote the folder."""
    try:
        note = parse_json(decode_text((file.parent / NOTE).read_bytes()))
    except (OSError, Unreadable):
        return {}
    return note if isinstance(note, dict) and "stillhouse" in note else {}


def _truncation_notes(dataset: Dataset) -> Iterator[str]:
    """Warn of truncated answers, for text-only formats: training code appends an end token to every answer."""
    found: Counter[str] = Counter()
    for entry in dataset.files(*SPLITS):
        with dataset.open(entry) as parquet:
            for batch in parquet.iter_batches(columns=["finish_reason"]):
                found.update(one for one in batch.column(0).to_pylist() if not is_complete(one))
    if found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.most_common())
        yield (
            f"{found.total()} answers are truncated (finish_reason: {reasons}), which the format cannot express: a model "
            "trained on them learns to stop early. Remove them with `stillhouse datasets filter "
            f"{dataset.manifest.label} --where \"finish_reason = 'stop'\" --into NAME`"
        )


# ----------------------------------------------------------------------------------------------------------------- files


def _write(dataset: Dataset, split: Split, plan: ExportPlan, file_type: FileType, path: Path) -> Iterator[int]:
    """Write one file; yield the number of rows of each batch."""
    with atomic_file(path) as stream, _writer(stream, plan.schema, file_type) as write:
        for entry in dataset.files(split):
            with dataset.open(entry) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(plan.columns)):
                    converted = plan.convert(batch)
                    if converted.num_rows:
                        write(converted)
                    yield converted.num_rows


@contextmanager
def _writer(stream: IO[bytes], schema: pa.Schema, file_type: FileType) -> Iterator[Any]:
    if file_type == "jsonl":
        yield lambda rows: stream.writelines(orjson.dumps(row) + b"\n" for row in rows.to_pylist())
        return
    with pq.ParquetWriter(stream, schema, compression="zstd") as parquet:
        yield parquet.write_batch


def _file_type(to: str, plan: ExportPlan, options: ExportOptions) -> FileType:
    if plan.only and options.file_type not in (None, plan.only):
        raise UsageError(
            f"the format {to} only has {plan.only} files",
            setting="--files",
            value=options.file_type,
            fix="remove --files",
        )
    return options.file_type or plan.file_type


def _note(dataset: Dataset, to: str, temporary: Path, names: list[str], rows: dict[str, int]) -> bytes:
    manifest = dataset.manifest
    note = {
        "stillhouse": stillhouse.__version__,
        "format": to,
        "dataset": manifest.label,
        "teacher": asdict(manifest.teacher),
        "soft": manifest.soft.model_dump() if manifest.soft else None,
        "licence": manifest.licence,
        "rows": rows,
        "files": {name: sha256_of_file(temporary / name) for name in names},
    }
    return to_json(note, indent=2).encode() + b"\n"


# ---------------------------------------------------------------------------------------------------------------- folder


def _check_replaceable(folder: Path, force: bool) -> None:
    if folder.is_file():
        raise UsageError(
            "it is a file", setting="--out", value=str(folder), fix="name a folder, which gets one file per split"
        )
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise UsageError(
            "the folder already exists",
            setting="--out",
            value=str(folder),
            fix="name another folder, or add --force to replace it",
        )
    note = read_note(folder / NOTE)
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in {NOTE, *note.get("files", ())})
    if foreign or not note:
        raise UsageError(
            f"it has files that no export wrote ({', '.join(foreign[:3]) or NOTE}); even --force does not replace it",
            setting="--out",
            value=str(folder),
            fix="name another folder, or empty this one",
        )


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block ends without error."""
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        make_folder(temporary)
        yield temporary
        if folder.is_dir():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
        fsync_folder(folder.parent)
    except OSError as error:
        raise StorageFailed(
            f"{folder} cannot be written: {error.strerror or error}. Nothing was written there"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
