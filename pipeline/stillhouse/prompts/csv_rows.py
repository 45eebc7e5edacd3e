"""Rows of a CSV or TSV file, such as a spreadsheet exports: every cell is text, and an empty one is missing.

The first line names the columns. Fields are separated by commas (`.csv`; by semicolons or tabs if the header has no comma
but these) or by tabs (`.tsv`), quoted as RFC 4180 describes; a quoted field may hold line breaks. A spreadsheet's line
`sep=;` before the header sets the separator.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from stillhouse.errors import PromptError
from stillhouse.inputs.user_files import Unreadable, text_lines

_LARGEST_FIELD = 1 << 30  # characters
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?', re.IGNORECASE)  # Excel reads and writes it


def csv_rows(stream: io.BufferedReader, source: str, delimiter: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file.

    Args:
        stream: of bytes, in UTF-8 or in the encoding that its byte-order mark names.
        source: the file's name, for errors.
        delimiter: between fields; None: a comma, or a semicolon or a tab if the header has no comma but one of these.

    Raises:
        PromptError: the header is missing or names a column twice, a row has more fields than the header, or a quote is
            not closed.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    lines = _Lines(stream, source)
    header = next(iter(lines), "")
    skipped = 0  # lines before the header
    if named := _SEPARATOR_LINE.fullmatch(header.strip("\r\n")):
        delimiter, header, skipped = named[1], next(iter(lines), ""), 1
    if delimiter is None:
        delimiter = next((one for one in ",;\t" if one in header), ",")
    lines.put_back(header)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        _check_header(names, source)
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) > len(names):
                raise PromptError(
                    f"line {reader.line_num + skipped} of {source} has {len(cells)} fields, and the header has "
                    f"{len(names)} columns",
                    fix="put a field that contains the separator in double quotes",
                )
            yield {name: cell or None for name, cell in zip(names, [*cells, *[""] * len(names)], strict=False)}
    except csv.Error as error:
        raise PromptError(
            f"line {reader.line_num + skipped} of {source} is not valid CSV: {error}",
            fix='put a field with quotes or line breaks in double quotes, and write a quote inside it twice ("")',
        ) from None


class _Lines:
    """The lines of a file as text, with their line ends; one line may be put back."""

    def __init__(self, stream: io.BufferedReader, source: str) -> None:
        self._lines = text_lines(stream)
        self._source = source
        self._waiting: list[str] = []

    def put_back(self, line: str) -> None:
        if line:
            self._waiting.append(line)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._waiting:
            return self._waiting.pop()
        try:
            return next(self._lines).decode()
        except (Unreadable, UnicodeDecodeError) as error:
            raise PromptError(
                f"the file is not valid UTF-8 ({error})",
                setting="prompts.source",
                value=self._source,
                fix="save it as UTF-8",
            ) from None


def _check_header(names: list[str], source: str) -> None:
    if not any(name.strip() for name in names):
        raise PromptError(f"{source} has no header", fix="put the column names on its first line")
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise PromptError(f"the header of {source} has the column {twice!r} twice", fix="rename one of them")
