"""ShareGPT's format: `{"conversations": [{"from": "human" | "gpt" | "system", "value": ...}, ...]}`.

The last turn is the answer. Imported from JSON Lines, from a JSON array, or from Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ExportOptions, ExportPlan, ImportSource, Read
from stillhouse.exchange.conversations import parse_conversation
from stillhouse.exchange.lines import read_rows

_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
_TURNS = pa.list_(pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())]))
_SCHEMA = pa.schema([pa.field("conversations", _TURNS)])


class ShareGpt:
    """ShareGPT's format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = False

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        return ExportPlan(_SCHEMA, ("prompt", "completion"), _convert)

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        for file in source.files:
            for place, row in read_rows(file):
                turns = row.get("conversations", row.get("conversation"))
                if turns is None:
                    raise UsageError(
                        f"{place} has no 'conversations', only {', '.join(row)}",
                        fix="import the file with its own format",
                    )
                if isinstance(turns, list) and isinstance(row.get("system"), str) and row["system"]:
                    turns = [{"from": "system", "value": row["system"]}, *turns]
                yield parse_conversation(
                    turns, place, role="from", content="value", finish_reason=row.get("finish_reason")
                )


def _convert(rows: pa.RecordBatch) -> pa.RecordBatch:
    prompts, completions = (rows.column(name).to_pylist() for name in ("prompt", "completion"))
    turns = [
        [{"from": _NAMES[turn["role"]], "value": turn["content"]} for turn in [*prompt, *completion]]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return pa.RecordBatch.from_arrays([pa.array(turns, _TURNS)], schema=_SCHEMA)


FORMAT = ShareGpt()
