"""Read the rows of a file, each with its place: JSON Lines, a JSON array, or Parquet.

    >>> place, row = next(read_rows(Path("words.jsonl")))
    >>> row["word"]
    'kettle'

Rows are streamed, except for a JSON array (common in `.json` files of conversations), which is read into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.exchange.base import Json, SourceLine
from stillhouse.inputs.user_files import Unreadable, decode_text, parse_json, text_lines
from stillhouse.text import short_repr

NOTE = "export.json"  # the note that an export writes next to its files
_SUFFIXES = (".jsonl", ".json", ".parquet")
_ROWS_AT_ONCE = 64  # from Parquet: rows with soft labels are large


def input_files(given: Sequence[Path]) -> list[Path]:
    """Return the given files, with folders replaced by the data files in them.

    Raises:
        UsageError: a file does not exist, or a folder has no data files.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.name != NOTE)
            if not inside:
                raise UsageError(
                    f"the folder {path} has no {', '.join(_SUFFIXES)} file", fix="name the files to import"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(
                f"the file {path} does not exist", fix="check the path, which is relative to the working folder"
            )
    return found


def read_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[SourceLine, Json]]:
    """Yield every row of a file with its place; from Parquet, only those of `columns` that exist.

    Raises:
        UsageError: the file cannot be read, or a row is not an object.
    """
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, columns)
    elif _begins_with_array(file):
        yield from _array_rows(file)
    else:
        yield from _json_lines(file)


def _json_lines(file: Path) -> Iterator[tuple[SourceLine, Json]]:
    with file.open("rb") as stream:
        try:
            for number, line in enumerate(text_lines(stream), start=1):
                if line.strip():
                    place = SourceLine(file, number)
                    yield place, _check_object(_json_line(line, place), place)
        except Unreadable as error:
            raise UsageError(f"{file}: {error}", fix="save it as UTF-8") from None


def _json_line(line: bytes, place: SourceLine) -> Any:
    try:
        return parse_json(line, fast=True)
    except Unreadable as error:
        raise UsageError(f"{place} is not valid JSON ({error})", fix="correct the line, or remove it") from None


def _array_rows(file: Path) -> Iterator[tuple[SourceLine, Json]]:
    try:
        rows = parse_json(decode_text(file.read_bytes()), fast=True)
    except Unreadable as error:
        raise UsageError(
            f"{file} begins with '[' and is not a valid JSON array ({error})", fix="correct the file"
        ) from None
    for number, row in enumerate(rows, start=1):
        place = SourceLine(file, number, "item")
        yield place, _check_object(row, place)


def _parquet_rows(file: Path, columns: Sequence[str] | None) -> Iterator[tuple[SourceLine, Json]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            wanted = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
            number = 0
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield SourceLine(file, number, "row"), row
    except (pa.ArrowException, OSError) as error:  # a damaged page raises OSError
        raise UsageError(f"{file} cannot be read as Parquet ({error})", fix="export or copy it again") from None


def _check_object(row: Any, place: SourceLine) -> Json:
    if not isinstance(row, dict):
        raise UsageError(f"{place} is {short_repr(row)}, not an object", fix="write one JSON object there")
    return row


def _begins_with_array(file: Path) -> bool:
    with file.open("rb") as stream:
        try:
            return next((line.lstrip()[:1] == b"[" for line in text_lines(stream) if line.strip()), False)
        except Unreadable:
            return False  # reported when the lines are read
