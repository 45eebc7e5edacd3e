"""The Parquet layout of tables: compression, the encoding of each column, and the size of row groups.

    pq.write_table(table, stream, **write_options(table))

Columns that dictionary encoding does not make smallest use another Parquet encoding (those of soft labels are defined in
encodings/); docs/benchmarks.md has the bytes per token. DuckDB, Polars and pyarrow read all of them.
"""

from __future__ import annotations

from typing import Any, get_args

import pyarrow as pa

from stillhouse.dataset.encodings import find_encoding
from stillhouse.records import EncodingName

_ZSTD_LEVEL = 12  # higher levels are much slower to write and hardly smaller
_GROUP_ROWS = 1000
_GROUP_BYTES = 32 << 20  # in Arrow's memory
_COLUMNS = {"completion_logprobs": "BYTE_STREAM_SPLIT"}  # values rarely repeat


def write_options(table: pa.Table) -> dict[str, Any]:
    """Return the arguments of `pyarrow.parquet.write_table` for a table of completions or rejections."""
    encodings = _encodings(table.schema)
    return {
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "row_group_size": _group_rows(table),
        "column_encoding": encodings,
        "use_dictionary": [leaf for field in table.schema for leaf in _leaves(field) if leaf not in encodings],
    }


def _group_rows(table: pa.Table) -> int:
    """Return the rows per row group, which bounds a reader's memory for a file of any size."""
    each = table.nbytes / table.num_rows if table.num_rows else 0
    return int(max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(1, each))))


def _encodings(schema: pa.Schema) -> dict[str, str]:
    """Map the Parquet paths of columns without dictionary encoding to the names of their encodings."""
    wanted = dict(_COLUMNS)
    for name in get_args(EncodingName):
        wanted |= find_encoding(name).parquet_encodings
    return {leaf: wanted[field.name] for field in schema if field.name in wanted for leaf in _leaves(field)}


def _leaves(field: pa.Field, parent: str = "") -> list[str]:
    """Return the Parquet column paths of one field; a list of structs has one path per member."""
    path, kind = f"{parent}{field.name}", field.type
    if pa.types.is_list(kind):
        return _leaves(kind.value_field.with_name("element"), f"{path}.list.")
    if pa.types.is_struct(kind):
        return [leaf for member in kind for leaf in _leaves(member, f"{path}.")]
    return [path]
