"""Import answers from files in other formats as a new version of a dataset.

    >>> turns = '[{"from": "human", "value": "Name a tree."}, {"from": "gpt", "value": "Oak."}]'
    >>> _ = Path("talk.jsonl").write_text(f'{{"conversations": {turns}}}')
    >>> request = ImportRequest("sharegpt", [Path("talk.jsonl")], root=Path("data/labels"), into="talk")
    >>> import_dataset(request).dataset.manifest.rows
    {'train': 1}

The files are read once, row by row, into temporary Parquet files, until all teachers are known; then the version is
written, so an error never leaves a partial version. Answers that cannot become rows are counted by reason.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ImportedAnswer, ImportSource, Interpret, Read, RequestKey, SkippedRow
from stillhouse.exchange.export import read_note
from stillhouse.exchange.find_format import find_format
from stillhouse.exchange.lines import NOTE, input_files
from stillhouse.exchange.sample_numbering import Numbering
from stillhouse.prompts.load import split_of
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.recipe.label import SamplingSettings, SoftSettings, encoding_of
from stillhouse.records import SPLITS, Completion, Split, TeacherIdentity, content_hash, utc_now
from stillhouse.settings import parse_options
from stillhouse.storage.location import Location

UNKNOWN = "unknown"
_VALIDATION = 0.1  # share that is held out if neither the command nor the file names determine the split
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ImportRequest:
    """The files to import, and the dataset to write."""

    format: str
    files: Sequence[Path]
    root: Location
    into: str
    teacher: str | None = None  # the model that wrote the answers; None: from the files
    tokenizer: Path | None = None
    validation: float | None = None  # share of prompts to hold out; None: by file names, else a tenth
    interpret: Interpret | None = None  # see ImportSource


@dataclass
class ImportCounts:
    """Counts collected during an import."""

    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first case, with its place
    unkeyed: Counter[str] = field(default_factory=Counter)  # why a row's request key is unknown -> rows
    keyed: int = 0
    rows: int = 0
    teachers: dict[TeacherIdentity, int] = field(default_factory=dict)
    sampling: set[SamplingSettings | None] = field(default_factory=set)
    widest: int = 0  # largest k of the top-k labels

    def count_skipped(self, one: SkippedRow) -> None:
        self.skipped[one.reason] += 1
        self.examples.setdefault(one.reason, f"{one.place}: {one.detail}")


@dataclass(frozen=True)
class Imported:
    """An imported version."""

    dataset: Dataset
    counts: ImportCounts


def import_dataset(request: ImportRequest) -> Imported:
    """Import files as the next version of the dataset `into`.

    Raises:
        UsageError: an option is invalid, a file is missing or not in this format (the message has the file, the line and
            the fix), or no row can be imported.
        DatasetBusy: another run is writing this dataset.
        StorageFailed: the version cannot be written.
    """
    _check_name(request.into)
    if request.validation is not None and not 0 <= request.validation < 1:
        raise UsageError(
            "it is out of range",
            setting="--validation",
            value=request.validation,
            fix="use a share from 0 to below 1, such as 0.1",
        )
    format_ = find_format("FORMAT", request.format)
    files = input_files(request.files)
    note = read_note(files[0])
    soft = parse_options(f"{NOTE}: soft", note.get("soft") or {}, SoftSettings) if format_.soft else None
    reads = format_.read_rows(
        ImportSource(files, request.tokenizer, soft if note.get("soft") else None, request.interpret)
    )
    default = _teacher(request, note)
    counts = ImportCounts()
    with tempfile.TemporaryDirectory(prefix="stillhouse-import-") as folder, Numbering() as numbering:
        staged = _stage(Path(folder), reads, request, default, soft, numbering, counts)
        if not counts.rows:
            raise UsageError(f"no row of {files[0]} can be imported: {_describe_skipped(counts) or 'it has no rows'}")
        with new_version(request.root, request.into, _origin(request, files, counts, soft, note)) as version:
            for split, path in staged.items():
                with pq.ParquetFile(path) as parquet:
                    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
                        version.add(split, batch)
    return Imported(version.dataset, counts)


# --------------------------------------------------------------------------------------------------------------- staging


def _stage(
    folder: Path,
    reads: Iterator[Read],
    request: ImportRequest,
    default: TeacherIdentity,
    soft: SoftSettings | None,
    numbering: Numbering,
    counts: ImportCounts,
) -> dict[Split, Path]:
    """Read all answers once and write the rows to one temporary file per split."""
    encoding = encoding_of(soft)
    schema = completion_schema(soft=encoding)
    now = utc_now()
    by_name = request.validation is None and any(
        split_in_name(file) == "validation" for file in input_files(request.files)
    )
    share = _VALIDATION if request.validation is None else request.validation
    paths: dict[Split, Path] = {}
    with ExitStack() as stack:
        writers: dict[Split, Any] = {}
        for read in reads:
            if isinstance(read, SkippedRow):
                counts.count_skipped(read)
                continue
            if read.answer_id is not None and not numbering.is_new(read.answer_id):
                counts.skipped["repeated"] += 1
                continue
            completion = _completion(read, default, request, now, numbering, counts)
            split = split_in_name(read.place.file) if by_name else split_of(completion.prompt, share)
            if split not in writers:
                paths[split] = folder / f"{split}.parquet"
                writers[split] = stack.enter_context(_batched(paths[split], schema))
            writers[split](completion_row(completion, soft=encoding))
    return {split: paths[split] for split in SPLITS if split in paths}


@contextmanager
def _batched(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Yield a function that appends rows to a Parquet file, in batches."""
    waiting: list[Any] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as parquet:

        def append(row: Any) -> None:
            waiting.append(row)
            if len(waiting) >= _ROWS_AT_ONCE:
                flush()

        def flush() -> None:
            if waiting:
                parquet.write_batch(record_batch(waiting, schema))
                waiting.clear()

        yield append
        flush()


def _completion(
    read: ImportedAnswer,
    default: TeacherIdentity,
    request: ImportRequest,
    now: str,
    numbering: Numbering,
    counts: ImportCounts,
) -> Completion:
    teacher = read.teacher or default
    keyed = isinstance(read.request, RequestKey)
    terms = read.request.terms if isinstance(read.request, RequestKey) else request.format
    sample = numbering.next(f"{terms}:{teacher.model}:{read.prompt.id}")
    counts.rows += 1
    counts.teachers[teacher] = counts.teachers.get(teacher, 0) + 1
    counts.sampling.add(read.sampling)
    if isinstance(read.request, RequestKey):
        id_ = read.request.compute(read.prompt.id, sample)
    else:
        id_ = content_hash(["imported", request.format, teacher.model, read.prompt.id, sample])
        if read.request:
            counts.unkeyed[read.request] += 1
    counts.keyed += keyed
    if read.trace is not None and read.trace.soft is not None:
        counts.widest = max(counts.widest, getattr(read.trace.soft, "k", 0))
    return Completion(
        id=id_,
        prompt=read.prompt,
        sample=sample,
        text=read.text,
        finish_reason=read.finish_reason,
        prompt_tokens=read.prompt_tokens,
        completion_tokens=read.completion_tokens,
        teacher=teacher.model,
        created_at=read.created_at or now,
        cost_usd=read.cost_usd,
        trace=read.trace,
        reasoning=read.reasoning,
        token_logprobs=read.token_logprobs,
    )


# ---------------------------------------------------------------------------------------------------------------- origin


def _origin(
    request: ImportRequest,
    files: Sequence[Path],
    counts: ImportCounts,
    soft: SoftSettings | None,
    note: dict[str, Any],
) -> Origin:
    teachers = sorted(counts.teachers, key=lambda one: -counts.teachers[one])
    if soft is not None and soft.encoding == "top-k":
        soft = SoftSettings(k=counts.widest)
    sampling = next(iter(counts.sampling)) if len(counts.sampling) == 1 else None
    listed = ", ".join(file.name for file in files[:3]) + (
        f" and {len(files) - 3} more files" if len(files) > 3 else ""
    )
    left_out = f"; left out: {_describe_skipped(counts)}" if counts.skipped else ""
    licence = note.get("licence")
    return Origin(
        made_by="import",
        how=f"{request.format}: {listed}{left_out}",
        teacher=teachers[0],
        more_teachers=tuple(teachers[1:]),
        soft=soft,
        mode="generate" if sampling else None,
        sampling=sampling,
        licence=licence if isinstance(licence, str) else None,
    )


def _teacher(request: ImportRequest, note: dict[str, Any]) -> TeacherIdentity:
    """Return the teacher of rows that do not name one: from the command line, the export note, or unknown."""
    known = {one.name for one in fields(TeacherIdentity)}
    noted = note.get("teacher")
    given = {name: value for name, value in noted.items() if name in known} if isinstance(noted, dict) else {}
    teacher = TeacherIdentity(**given) if "kind" in given and "model" in given else TeacherIdentity("imported", UNKNOWN)
    if request.teacher is not None and request.teacher != teacher.model:
        teacher = TeacherIdentity("imported", request.teacher)
    if request.tokenizer is None:
        return teacher
    from stillhouse.models.find import find_model

    model = find_model(str(request.tokenizer), setting="--tokenizer", weights=False)
    if teacher.tokenizer_sha256 and teacher.tokenizer_sha256 != model.tokenizer_sha256:
        raise UsageError(
            f"the files were exported with another tokenizer ({teacher.model}'s, sha256 "
            f"{teacher.tokenizer_sha256[:12]}…, not {model.tokenizer_sha256[:12]}…)",
            setting="--tokenizer",
            value=str(request.tokenizer),
            fix=f"use the tokenizer of {teacher.model}",
        )
    return replace(
        teacher,
        tokenizer_sha256=model.tokenizer_sha256,
        chat_template_sha256=model.chat_template_sha256,
        vocabulary_size=model.vocabulary_size,
    )


def _describe_skipped(counts: ImportCounts) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.skipped.most_common())


def split_in_name(file: Path) -> Split:
    """Return the split by file name: `validation.jsonl` and `validation-00000-of-00001.parquet`; else train."""
    return "validation" if re.match(r"validation\b", file.name) else "train"


def _check_name(name: str) -> None:
    pattern = next(one.pattern for one in DatasetSettings.model_fields["name"].metadata if hasattr(one, "pattern"))
    if not re.match(pattern, name) or os.sep in name:
        raise UsageError(
            "it is not a valid name of a dataset",
            setting="--into",
            value=name,
            fix="use letters, digits, '.', '_' and '-'",
        )
