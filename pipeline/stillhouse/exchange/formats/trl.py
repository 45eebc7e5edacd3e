"""TRL's conversational prompt-completion format: `{"prompt": [turns], "completion": [turns]}`.

A dataset already has this form: TRL's `SFTTrainer` trains directly on a version's folder (tests/exchange). The export has
only these two columns. TRL's other forms can be imported too: texts instead of turns, and `messages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from stillhouse.dataset.columns import MESSAGES
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import (
    ExportOptions,
    ExportPlan,
    ImportedAnswer,
    ImportSource,
    Json,
    Read,
    SourceLine,
)
from stillhouse.exchange.conversations import parse_conversation
from stillhouse.exchange.lines import read_rows
from stillhouse.inputs.cells import NotText, cell_text
from stillhouse.records import Prompt

_COLUMNS = ("prompt", "completion")
_SCHEMA = pa.schema([pa.field(name, MESSAGES) for name in _COLUMNS])


class Trl:
    """TRL's format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = False

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        return ExportPlan(_SCHEMA, _COLUMNS, lambda rows: rows.select(_COLUMNS).cast(_SCHEMA))

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        for file in source.files:
            for place, row in read_rows(file, (*_COLUMNS, "messages", "reference", "finish_reason")):
                read = parse_conversation(_turns(row, place), place, finish_reason=row.get("finish_reason"))
                if isinstance(read, ImportedAnswer):
                    read = replace(read, prompt=Prompt(read.prompt.messages, _reference(row, place)))
                yield read


def _reference(row: Json, place: SourceLine) -> str | None:
    try:
        return cell_text(row.get("reference"))
    except NotText as problem:
        raise UsageError(f"{place}: 'reference' is {problem}", fix="write it as a text, or remove the column") from None


def _turns(row: Json, place: SourceLine) -> Any:
    if row.get("messages") is not None:
        return row["messages"]
    if "prompt" not in row or "completion" not in row:
        raise UsageError(
            f"{place} has no 'prompt' and 'completion', only {', '.join(row)}",
            fix="import the file with its own format",
        )
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[name]
        if not isinstance(value, (str, list)):
            raise UsageError(
                f"{place}: {name!r} is a {type(value).__name__}", fix="write it as a text, or as a list of turns"
            )
        turns += [{"role": role, "content": value}] if isinstance(value, str) else value
    return turns


FORMAT = Trl()
