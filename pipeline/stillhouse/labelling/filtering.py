"""Divide a shard's answers into rows that the filters keep and rejections with a reason.

Rows are in the order of the requests. A stateful filter (duplicates, best-of) sees every shard once and in order, including
shards that an earlier run wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from stillhouse.dataset.columns import completion_at, completion_schema, record_batch, rejection_row, rejection_schema
from stillhouse.dataset.files import open_parquet
from stillhouse.labelling.journal import Answers
from stillhouse.labelling.plan import Shard
from stillhouse.quality.base import NamedFilter, StatefulFilter, apply_filters, record_kept
from stillhouse.recipe.quality import FilterSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import EncodingName, Rejection
from stillhouse.storage.location import Location
from stillhouse.teachers.base import Request

_ROWS_AT_ONCE = 256


def filters_of(recipe: Recipe) -> list[FilterSettings]:
    """Return the recipe's filters; if answers must match a JSON schema, that check comes first."""
    schema = (recipe.label.response_format or {}).get("json_schema", {}).get("schema")
    if schema is None:
        return list(recipe.quality)
    from stillhouse.quality.json_schema import make_validator

    make_validator(schema, "label.response_format.json_schema.schema")  # so an error names this setting
    return [FilterSettings.model_validate({"kind": "json-schema", "schema": schema}), *recipe.quality]


@dataclass(frozen=True)
class FilteredShard:
    """The two tables of a shard."""

    kept: pa.Table
    rejected: pa.Table


class ShardFilter:
    """Applies a recipe's filters over all its shards; used by one thread at a time."""

    def __init__(self, filters: Sequence[NamedFilter], *, soft: EncodingName | None) -> None:
        self._filters = filters
        self._soft = soft
        self._kept = completion_schema(soft=soft)
        self._rejected = rejection_schema(soft=soft)

    def apply(self, shard: Shard, answers: Answers) -> FilteredShard:
        """Put every request of the shard into exactly one of the two tables."""
        kept: list[int] = []
        references: list[str | None] = []
        rejected: list[pa.Table] = []
        for id_, request in zip(shard.ids, shard.requests, strict=True):
            kind, position = answers.places[id_]
            if kind == "rejection":
                row = answers.tables["rejection"].slice(position, 1)
                rejected.append(_with_references(row, [request.prompt.reference]))
                continue
            filtered = self._rejection_row(answers.tables["completion"], position, request)
            if filtered is None:
                kept.append(position)
                references.append(request.prompt.reference)
            else:
                rejected.append(pa.Table.from_batches([filtered]))
        table = answers.tables["completion"].take(kept) if kept else self._kept.empty_table()
        return FilteredShard(
            _with_references(table, references),
            pa.concat_tables([self._rejected.empty_table(), *rejected]).combine_chunks(),
        )

    def remember(self, file: Location) -> None:
        """Show the rows of a shard that an earlier run wrote to the stateful filters."""
        if not any(isinstance(one.check, StatefulFilter) for one in self._filters):
            return
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
                for index in range(batch.num_rows):
                    record_kept(completion_at(batch, index), self._filters)

    def _rejection_row(self, completions: pa.Table, position: int, request: Request) -> pa.RecordBatch | None:
        """Return the row of a filter's rejection; None if the completion is kept."""
        if not self._filters:
            return None
        completion = replace(completion_at(completions, position), prompt=request.prompt)
        verdict = apply_filters(completion, self._filters)
        if verdict is None:
            return None
        rejection = Rejection(
            id=completion.id,
            prompt=request.prompt,
            sample=request.sample,
            stage="quality",
            reason=verdict.reason,
            detail=verdict.detail,
            completion=completion,
        )
        return record_batch([rejection_row(rejection, soft=self._soft)], self._rejected)


def _with_references(rows: pa.Table, references: Sequence[str | None]) -> pa.Table:
    """Return the rows with the prompts' current references: a corrected reference needs no new answer."""
    position = rows.schema.get_field_index("reference")
    field = rows.schema.field(position)
    return rows.set_column(position, field, pa.array(references, field.type))
