"""OpenAI's fine-tuning format: one `{"messages": [{"role", "content"}, ...]}` per line; the last turn is the answer.

The format cannot hold token ids, soft labels, reasoning and references; an export drops them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import MESSAGES, ExportOptions, LeftOut, Outgoing, Read, Source
from stillhouse.exchange.conversations import answered, whole_conversations
from stillhouse.exchange.lines import rows_of

_SCHEMA = pa.schema([pa.field("messages", MESSAGES)])


class OpenAi:
    """OpenAI's fine-tuning format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = False

    def exports(self, dataset: Dataset, options: ExportOptions) -> Outgoing:
        return Outgoing(_SCHEMA, ("prompt", "completion"), _convert)

    def reads(self, source: Source) -> Iterator[Read]:
        for file in source.files:
            for place, row in rows_of(file):
                if "messages" not in row:
                    raise UsageError(
                        f"{place} has no 'messages', but {', '.join(row)}: is it a file of another format?"
                    )
                if row.get("tools") or row.get("functions"):
                    yield LeftOut("tool-calls", "the answer was written with tools at hand", place)
                else:
                    yield answered(row["messages"], place, finish_reason=row.get("finish_reason"))


def _convert(rows: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([whole_conversations(rows)], schema=_SCHEMA)


FORMAT = OpenAi()
