"""OpenAI's fine-tuning format: one `{"messages": [{"role", "content"}, ...]}` per line; the last turn is the answer.

The format cannot hold token ids, soft labels, reasoning and references; an export drops them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from stillhouse.dataset.columns import MESSAGES
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ExportOptions, ExportPlan, ImportSource, Read, SkippedRow
from stillhouse.exchange.conversations import parse_conversation, whole_conversations
from stillhouse.exchange.lines import read_rows

_SCHEMA = pa.schema([pa.field("messages", MESSAGES)])


class OpenAi:
    """OpenAI's fine-tuning format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = False

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        return ExportPlan(_SCHEMA, ("prompt", "completion"), _convert)

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        for file in source.files:
            for place, row in read_rows(file):
                if "messages" not in row:
                    raise UsageError(
                        f"{place} has no 'messages', only {', '.join(row)}", fix="import the file with its own format"
                    )
                if row.get("tools") or row.get("functions"):
                    yield SkippedRow("tool-calls", "the request offered tools to the model", place)
                else:
                    yield parse_conversation(row["messages"], place, finish_reason=row.get("finish_reason"))


def _convert(rows: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([whole_conversations(rows)], schema=_SCHEMA)


FORMAT = OpenAi()
