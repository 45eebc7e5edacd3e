"""Read the rows that prompts are made from: a local or remote file, a local dataset version, or a hub data set.

    >>> next(source_rows(recipe.prompts))
    {'word': 'kettle', 'reference': 'A kettle is a thing.'}

Rows are streamed, never all in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import PromptError
from stillhouse.inputs.user_files import Unreadable, parse_json, text_lines
from stillhouse.prompts.csv_rows import csv_rows
from stillhouse.recipe.load import find_input
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.settings import nearest
from stillhouse.storage.location import Location, open_for_library
from stillhouse.text import short_quote

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]

_ROWS_AT_ONCE = 1000  # batch size when reading Parquet
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_OTHER_FILES = re.compile(  # suffixes of unsupported files; no hub data set has them
    r"\.(arrow|avro|bz2|db|docx?|feather|gz|html|j2|jl|json|jsonlines|md|ndjson|np[yz]|orc|pdf|pickle|pkl|pq|py|sqlite3?|tar"
    r"|tgz|txt|xlsx?|xml|xz|ya?ml|zip|zst)",
    re.IGNORECASE,
)
_LISTED = re.compile(r"(?:Available(?: splits)?|available configs): \[(.*?)\]")
_MESSAGE = 300  # maximum length of a library's message, characters


def source_rows(settings: PromptSettings) -> Iterator[Row]:
    """Yield the rows of `prompts.source`, in order.

    Raises:
        PromptError: the source is missing or cannot be read, or the settings do not apply to it.
    """
    source = settings.source
    files = sorted(Path(source).glob("data/*.parquet"))  # of a dataset version
    if files:
        return (row for file in files for row in _parquet_rows(file, str(file)))
    suffix = Path(source).suffix.lower()
    if suffix in _READERS:
        if settings.config is not None:
            raise PromptError(
                f"prompts.source is the file {source}, and only hub data sets have configurations",
                setting="prompts.config",
                value=settings.config,
                fix="remove prompts.config",
            )
        file = find_input(source)
        if file is None:
            raise PromptError(
                "the file does not exist",
                setting="prompts.source",
                value=source,
                fix="check the path, which is relative to the working folder",
            )
        return _READERS[suffix](file, source)
    if _OTHER_FILES.fullmatch(suffix) or not _HUB_ID.fullmatch(source) or Path(source).is_file():
        raise PromptError(
            "it is neither a supported file nor the id of a hub data set",
            setting="prompts.source",
            value=source,
            fix="use a .jsonl, .csv, .tsv or .parquet file, local or at a URL, the folder of a dataset version, or the id "
            "of a hub data set",
        )
    return _hub_rows(settings)


def _csv_rows(file: Location, source: str) -> Iterator[Row]:
    opened = open_for_library(file)
    with opened.open("rb") if isinstance(opened, Path) else opened as stream:
        yield from csv_rows(stream, source, "\t" if source.lower().endswith(".tsv") else None)


def _jsonl_rows(file: Location, source: str) -> Iterator[Row]:
    opened = open_for_library(file)
    with opened.open("rb") if isinstance(opened, Path) else opened as stream:
        try:
            for number, line in enumerate(text_lines(stream), start=1):
                if line.strip():
                    yield _json_row(line, f"line {number} of {source}")
        except Unreadable as error:
            raise PromptError(str(error), setting="prompts.source", value=source, fix="save it as UTF-8") from None


def _json_row(line: bytes, where: str) -> Row:
    try:
        row = parse_json(line)
    except Unreadable as error:
        raise PromptError(f"{where} is not valid JSON: {error}", fix="put one JSON object on each line") from None
    if not isinstance(row, dict):
        raise PromptError(f"{where} is a {type(row).__name__}, not an object", fix="put one JSON object on each line")
    return row


def _parquet_rows(file: Location, source: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(open_for_library(file)) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from _python_rows(batch)
    except (pa.ArrowException, OSError) as error:  # a damaged page raises OSError
        raise PromptError(f"it cannot be read as Parquet: {error}", setting="prompts.source", value=source) from None


def _python_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """Yield rows as Python objects; float16 and float32 keep their type, as float32 0.1 prints as 0.10000000149011612 in
    float64."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        values = column.to_pylist()
        for is_narrow, narrow in ((pa.types.is_float16, np.float16), (pa.types.is_float32, np.float32)):
            if is_narrow(column.type):
                values = [None if value is None else narrow(value) for value in values]
        columns.append(values)
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows}


# ------------------------------------------------------------------------------------------------------------------- hub


def _hub_rows(settings: PromptSettings) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows = iter(load_dataset(settings.source, settings.config, split=settings.split, streaming=True))
    except Exception as error:  # any error of the library or its dependencies ends the run
        raise _hub_error(settings, error) from error
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # network failure, damaged file, columns that change half-way
            raise _hub_error(settings, error) from error
        yield row


def _hub_error(settings: PromptSettings, error: Exception) -> PromptError:
    """Return an error with the library's message, the setting that it concerns and a fix; tokens are masked."""
    message = str(error).strip() or type(error).__name__
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            message = message.replace(token, "***")
    listed = _LISTED.search(message)
    choices = re.findall(r"'([^']*)'", listed[1]) if listed else []
    source = f"the hub data set {settings.source!r}"
    if "Config name is missing" in message:
        return PromptError(
            f"{source} has several configurations",
            setting="prompts.config",
            value=None,
            fix=f"set it to one of {', '.join(choices)}",
        )
    if "BuilderConfig" in message and choices:
        return PromptError(
            f"{source} has no such configuration",
            setting="prompts.config",
            value=settings.config,
            fix=nearest(str(settings.config), choices),
        )
    if "split" in message and choices:
        return PromptError(
            f"{source} has no such split",
            setting="prompts.split",
            value=settings.split,
            fix=nearest(settings.split, choices),
        )
    if "gated" in message:
        fix = "request access on its page at the hub, and set HF_TOKEN to a token of that account"
    elif isinstance(error, ConnectionError):
        fix = (
            "check the network, HF_HUB_OFFLINE and HF_ENDPOINT, or download it and set prompts.source to a .jsonl or "
            ".parquet file"
        )
    else:
        fix = "check the id, set HF_TOKEN if the data set is private, or use a .jsonl or .parquet file"
    config = f", config {settings.config!r}" if settings.config is not None else ""
    return PromptError(
        f"it is not a local file, and cannot be read from the hub (split {settings.split!r}{config}): "
        f"{type(error).__name__}: {short_quote(message, _MESSAGE)}",
        setting="prompts.source",
        value=settings.source,
        fix=fix,
    )
