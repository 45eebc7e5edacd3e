"""Logs of OpenAI requests and responses, to turn answers that are already paid for into a dataset.

Lines of the Batch API, with requests and answers in separate files, in any order:

    {"custom_id", "method", "url", "body": {"model", "messages", ...}}
    {"custom_id", "response": {"status_code", "body": {"choices", "usage", ...}}, "error"}

or lines that contain both, in one of these forms:

    {"request": {...}, "response": {...}}             each a bare body, or an object with status and `body`
    {"body": {...}, "response": {...}}
    {"model", "messages", ..., "choices", "usage"}    or with "response": a body, or just the text

This module only pairs requests with responses; `Source.interpret` (exchange/openai_log.py) turns them into rows with the
request keys that labelling would use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import (
    ExportOptions,
    ExportPlan,
    ImportSource,
    Json,
    Read,
    SkippedRow,
    SourceLine,
    import_only_error,
)
from stillhouse.exchange.lines import read_rows
from stillhouse.inputs.user_files import Unreadable, parse_json
from stillhouse.storage.temporary_database import temporary_database
from stillhouse.text import short_quote

_CREATE = """
CREATE TABLE halves (id TEXT PRIMARY KEY, asks INTEGER, body BLOB, file TEXT, line INTEGER, what TEXT) WITHOUT ROWID;
CREATE TABLE failed (id TEXT PRIMARY KEY) WITHOUT ROWID
"""
_RESPONSE_KEYS = {
    "response",
    "error",
    "choices",
    "usage",
    "created",
    "object",
    "system_fingerprint",
    "id",
    "status_code",
}
_LINE_KEYS = {"custom_id", "method", "url", "timestamp", "metadata"}


@dataclass(frozen=True)
class _Line:
    """The parts that one line of a log contains."""

    request: Json | None
    response: Json | None  # of a successful request
    failure: tuple[str, str] | None  # why there is no answer: (reason, detail)
    custom_id: str | None


class OpenAiLog:
    """Logs of OpenAI requests, see the module's docstring; `Format` in base.py is the protocol."""

    soft = False

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        raise import_only_error("openai-log")

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        interpret = source.interpret
        assert interpret is not None  # set by the command line
        with closing(_Unpaired()) as unpaired:
            for file in source.files:
                for place, row in read_rows(file):
                    line = _line(row, place)
                    if line.failure:
                        if line.custom_id:
                            unpaired.record_failure(line.custom_id)
                        yield SkippedRow(*line.failure, place)
                    elif line.request is not None and line.response is not None:
                        yield from interpret(line.request, line.response, place, line.custom_id is not None)
                    else:
                        pair = unpaired.find_pair(line, place)
                        if pair is not None:
                            yield from interpret(*pair, place, True)
            yield from unpaired.unmatched()


class _Unpaired:
    """Requests and responses that wait for their counterpart, in a temporary database, not in memory."""

    def __init__(self) -> None:
        self._store = temporary_database(_CREATE)

    def find_pair(self, line: _Line, place: SourceLine) -> tuple[Json, Json] | None:
        """Return (request, response) if this line completes a pair; else store it and return None.

        Raises:
            UsageError: the line has no custom_id, or a stored line of the same kind has the same one.
        """
        if line.custom_id is None:
            side = "an answer" if line.request is None else "a request"
            raise UsageError(
                f"{place} has only {side}, and no custom_id to find its counterpart",
                fix='write both on one line, as {"request": ..., "response": ...}, or use the lines of the Batch API',
            )
        asks = line.request is not None
        if asks and self._store.execute("DELETE FROM failed WHERE id = ?", (line.custom_id,)).rowcount:
            return None  # its response was a failure, read before
        query = "SELECT asks, body, file, line, what FROM halves WHERE id = ?"
        found = self._store.execute(query, (line.custom_id,)).fetchone()
        own = line.request if asks else line.response
        assert own is not None
        if found is None:
            half = (line.custom_id, asks, orjson.dumps(own), str(place.file), place.number, place.unit)
            self._store.execute("INSERT INTO halves VALUES (?, ?, ?, ?, ?, ?)", half)
            return None
        other_asks, body, file, number, what = found
        if bool(other_asks) == asks:
            raise UsageError(
                f"{place} has the custom_id {line.custom_id!r}, which {SourceLine(Path(file), number, what)} also has: "
                "two batches use the same ids",
                fix="import the batches one at a time",
            )
        self._store.execute("DELETE FROM halves WHERE id = ?", (line.custom_id,))
        other = orjson.loads(body)
        return (own, other) if asks else (other, own)

    def record_failure(self, custom_id: str) -> None:
        """Record that a request failed, so that it does not wait for an answer."""
        if not self._store.execute("DELETE FROM halves WHERE id = ? AND asks", (custom_id,)).rowcount:
            self._store.execute("INSERT OR IGNORE INTO failed VALUES (?)", (custom_id,))

    def unmatched(self) -> Iterator[SkippedRow]:
        """Yield the requests without a response, and the responses without a request."""
        query = "SELECT asks, file, line, what FROM halves ORDER BY file, line"
        for asks, file, number, what in self._store.execute(query):
            place = SourceLine(Path(file), number, what)
            if asks:
                yield SkippedRow("unanswered", "no file has a response to it; name the batch's output file too", place)
            else:
                yield SkippedRow("without-request", "no file has its request; name the batch's input file too", place)

    def close(self) -> None:
        self._store.close()


def _line(row: Json, place: SourceLine) -> _Line:
    custom_id = row.get("custom_id")
    request, response = _request(row, place), _response(row)
    failure = _failure(row, response)
    if isinstance(response, dict) and isinstance(response.get("body"), (dict, str)):
        response = _body(response["body"])
    if isinstance(response, str):
        response = {"choices": [{"message": {"role": "assistant", "content": response}, "text": response}]}
    if failure is None and response is not None and not isinstance(response, dict):
        raise UsageError(
            f"{place}: the response is {short_quote(repr(response))}", fix="write the body that the API returned"
        )
    if request is None and response is None and failure is None:
        raise UsageError(
            f"{place} has neither a request nor a response, only {', '.join(row)}",
            fix="use the keys custom_id, body, request, response, messages or choices",
        )
    return _Line(request, None if failure else response, failure, None if custom_id is None else str(custom_id))


def _request(row: Json, place: SourceLine) -> Json | None:
    request: Any = row.get("request", row.get("body"))
    if request is None and ("messages" in row or "prompt" in row):
        return {name: value for name, value in row.items() if name not in _RESPONSE_KEYS | _LINE_KEYS}
    request = _body(request)
    if isinstance(request, dict) and isinstance(request.get("body"), (dict, str)):
        request = _body(request["body"])
    if request is not None and not isinstance(request, dict):
        raise UsageError(f"{place}: the request is {short_quote(repr(request))}", fix="write the body that was sent")
    return request


def _response(row: Json) -> Any:
    if row.get("response") is not None:
        return _body(row["response"])
    if "choices" in row:
        return {name: row[name] for name in (_RESPONSE_KEYS | {"model"}) & row.keys() if name != "response"}
    return None


def _failure(row: Json, response: Any) -> tuple[str, str] | None:
    """Return why there is no answer, as (reason, detail); None if there is one or the line has no response part."""
    error = row.get("error")
    inner = response if isinstance(response, dict) else {}
    status = inner.get("status_code", inner.get("status", row.get("status_code")))
    if error is None and isinstance(inner.get("body"), dict):
        error = inner["body"].get("error")
    error = error or inner.get("error")
    if isinstance(status, int) and status != 200:
        return f"status-{status}", short_quote(_error_message(error) or "no message")
    if error:
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        return str(code or "error"), short_quote(_error_message(error))
    if "response" in row and response is None:
        return "no-answer", "the response is null"
    return None


def _error_message(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error or "")


def _body(value: Any) -> Any:
    """Parse a body that was stored as JSON text; return anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return parse_json(value, fast=True)
        except Unreadable:
            return value
    return value


FORMAT = OpenAiLog()
