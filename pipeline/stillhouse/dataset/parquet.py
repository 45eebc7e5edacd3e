"""How tables are laid out in Parquet: which encoding a column has, and how much of a file a reader must hold.

    pq.write_table(table, stream, **write_options(table))

Columns for which a dictionary is not the smallest have another of Parquet's own encodings (the soft labels' stand beside
them, in encodings/); figures are in docs/benchmarks.md. DuckDB, Polars and pyarrow read all of them.
"""

from __future__ import annotations

from typing import Any, get_args

import pyarrow as pa

from stillhouse.dataset.encodings import find_encoding
from stillhouse.records import EncodingName

_ZSTD_LEVEL = 12  # some 100,000 tokens a second with top-k of 50; 17 is 2 % smaller and five times as slow
_GROUP_ROWS = 1000
_GROUP_BYTES = 32 << 20  # as Arrow holds them
_COLUMNS = {"completion_logprobs": "BYTE_STREAM_SPLIT"}  # hardly one number comes twice


def write_options(table: pa.Table) -> dict[str, Any]:
    """The arguments of `pyarrow.parquet.write_table` for a table of completions or rejections."""
    encodings = _encodings(table.schema)
    return {
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "row_group_size": _group_rows(table),
        "column_encoding": encodings,
        "use_dictionary": [leaf for field in table.schema for leaf in _leaves(field) if leaf not in encodings],
    }


def _group_rows(table: pa.Table) -> int:
    """Rows that a reader holds at once: its memory is that of a row group, whatever the file's size."""
    each = table.nbytes / table.num_rows if table.num_rows else 0
    return int(max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(1, each))))


def _encodings(schema: pa.Schema) -> dict[str, str]:
    """Those that are no dictionary: a column's path in Parquet -> the encoding's name there."""
    wanted = dict(_COLUMNS)
    for name in get_args(EncodingName):
        wanted |= find_encoding(name).parquet
    return {leaf: wanted[field.name] for field in schema if field.name in wanted for leaf in _leaves(field)}


def _leaves(field: pa.Field, parent: str = "") -> list[str]:
    """The paths of the columns that Parquet makes of one field; a list of structs gives one for each member."""
    path, kind = f"{parent}{field.name}", field.type
    if pa.types.is_list(kind):
        return _leaves(kind.value_field.with_name("element"), f"{path}.list.")
    if pa.types.is_struct(kind):
        return [leaf for member in kind for leaf in _leaves(member, f"{path}.")]
    return [path]
