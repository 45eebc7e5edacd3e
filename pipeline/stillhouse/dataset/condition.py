"""Evaluate a filter condition on a dataset's columns: `completion_tokens < 200 and finish_reason = 'stop'`.

    >>> rows = pa.table({"word": ["tram", "elbow", None]})
    >>> condition = Condition("length(word) > 4", rows.schema)
    >>> condition.evaluate(rows).to_pylist()             # null where a column is null
    [False, True, None]

The language is SQL, parsed and evaluated by DuckDB: quoting, nulls, casts, LIKE and regular expressions work as users know
them, and the parser is maintained upstream. DuckDB's SQL can also read files and settings, so an expression is accepted
only if DuckDB's syntax tree of it has nothing but columns, constants, comparisons, operators, casts, CASE, and the
functions listed here: no query, no table, no function with access to the outside. As a second barrier, the connection has
external access off and its settings locked, so it cannot read files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillhouse.errors import UsageError
from stillhouse.settings import nearest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_COMPUTED_COLUMNS = {  # computed columns: conditions compare text, and the files have lists of messages
    "prompt_text": ("prompt", "array_to_string([m.content for m in prompt if m.role <> 'system'], chr(10))"),
    "completion_text": ("completion", "array_to_string([m.content for m in completion], '')"),
}
_CLASSES = {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CAST", "TYPE", "CASE"}
_OPERATORS = "+ - * / // % || ~~ !~~ ~~* !~~* ~~~ like_escape ilike_escape not_like_escape not_ilike_escape"
_TEXT_FUNCTIONS = (
    "length strlen lower upper trim ltrim rtrim contains starts_with ends_with prefix suffix left right substring "
    "regexp_matches regexp_full_match"
)
_NUMBER_FUNCTIONS = "abs round floor ceil least greatest isnan isinf isfinite"
_LIST_FUNCTIONS = "len list_value list_contains list_has list_sum list_avg list_min list_max array_length"
_FUNCTIONS = {
    name for names in (_OPERATORS, _TEXT_FUNCTIONS, _NUMBER_FUNCTIONS, _LIST_FUNCTIONS) for name in names.split()
}
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "threads": "1",
    "memory_limit": "1GB",
}


class Condition:
    """A parsed condition, see the module's docstring; `columns` are the file columns that it needs.

    Raises:
        UsageError: the text is not a condition on these columns, or DuckDB is not installed; the message says why.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text.strip()
        self._statement = f"select (\n{self.text}\n) as keep from rows"
        self._connection = _connect()
        names = _columns_in(self._connection, self.text, self._statement, [*schema.names, *_COMPUTED_COLUMNS])
        self._texts = [name for name in names if name in _COMPUTED_COLUMNS]
        wanted = dict.fromkeys(_COMPUTED_COLUMNS[name][0] if name in _COMPUTED_COLUMNS else name for name in names)
        self.columns = list(wanted) or ["id"]
        kind = self._query(pa.schema([schema.field(name) for name in self.columns]).empty_table()).type
        if not pa.types.is_boolean(kind):
            raise UsageError(
                f"it evaluates to {kind}, not to true or false",
                setting="--where",
                value=self.text,
                fix="compare it with a value",
            )

    def evaluate(self, rows: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
        """Evaluate the condition for each row; null if it is undecided because a column is null.

        Raises:
            UsageError: DuckDB cannot evaluate the condition on a value, for instance a failed cast.
        """
        return self._query(pa.table({name: rows.column(name) for name in self.columns}))

    def _query(self, rows: pa.Table) -> pa.Array:
        import duckdb

        texts = "".join(f", {_COMPUTED_COLUMNS[name][1]} as {name}" for name in self._texts)
        try:
            self._connection.register("given", rows)
            self._connection.execute(f"create or replace temp view rows as select *{texts} from given").fetchall()
            table: Any = self._connection.sql(self._statement).to_arrow_table()
        except duckdb.Error as error:
            raise _condition_error(self.text, str(error)) from None
        return pa.concat_arrays(table.column("keep").chunks) if len(rows) else table.column("keep").combine_chunks()


def _connect() -> DuckDBPyConnection:
    try:
        import duckdb
    except ImportError:
        raise UsageError(
            "`stillhouse datasets filter` needs DuckDB, which is not installed", fix="run `pip install duckdb`"
        ) from None
    connection = duckdb.connect(":memory:", config=_SETTINGS)
    connection.execute("set lock_configuration = true").fetchall()
    return connection


def _columns_in(connection: DuckDBPyConnection, text: str, statement: str, known: list[str]) -> list[str]:
    """Check that the text is one allowed expression, and return the columns that it names."""
    if not text:
        raise UsageError(
            "it is empty", setting="--where", value=text, fix="use a condition such as completion_tokens < 200"
        )
    tree = _tree(connection, statement)
    if tree.get("error"):
        raise _condition_error(text, str(tree.get("error_message", "it cannot be parsed")))
    plain = _tree(connection, "select (\ntrue\n) as keep from rows")
    selected = _pop_selected(tree)
    if len(selected) != 1 or not _pop_selected(plain) or _without_positions(tree) != _without_positions(plain):
        raise _condition_error(text, "it is not a single expression")
    names: dict[str, None] = {}
    for node in _nodes(selected):
        kind = node["class"]
        if kind == "FUNCTION" and node.get("function_name") in _FUNCTIONS:
            continue
        if kind == "FUNCTION":
            name = str(node.get("function_name"))
            close = difflib.get_close_matches(name, _FUNCTIONS, n=1, cutoff=0.75)
            fix = f"did you mean {close[0]!r}?" if close else "use one of the functions listed in docs/datasets.md"
            raise _condition_error(text, f"the function {name!r} is not allowed in conditions", fix)
        if kind not in _CLASSES:
            raise _condition_error(
                text, f"a condition can have columns, constants, operators and functions, but not a {kind.lower()}"
            )
        if kind == "COLUMN_REF":
            names[_find_column(text, node["column_names"], known)] = None
    return list(names)


def _find_column(text: str, path: list[str], known: list[str]) -> str:
    """Return the column that a path names, ignoring case."""
    name = path[1] if path[0] == "rows" and len(path) > 1 else path[0]
    found = next((column for column in known if column.lower() == name.lower()), None)
    if found is None:
        raise _condition_error(text, f"the column {name!r} does not exist", nearest(name, known))
    return found


def _tree(connection: DuckDBPyConnection, statement: str) -> dict[str, Any]:
    """Return DuckDB's syntax tree of a statement, without running it."""
    found = connection.execute("select json_serialize_sql(?)", [statement]).fetchall()
    tree: dict[str, Any] = json.loads(found[0][0])
    return tree


def _pop_selected(tree: dict[str, Any]) -> list[Any]:
    statements = tree.get("statements") or [{}]
    selected: list[Any] = statements[0].get("node", {}).pop("select_list", [])
    return selected


def _without_positions(tree: Any) -> Any:
    """Return a tree without text positions, which depend on the length of the text."""
    if isinstance(tree, dict):
        return {key: _without_positions(value) for key, value in tree.items() if not key.startswith("query_location")}
    return [_without_positions(item) for item in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of an expression."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)


def _condition_error(text: str, why: str, fix: str | None = None) -> UsageError:
    return UsageError(
        why.partition("\n")[0].strip().rstrip("."),
        setting="--where",
        value=text,
        fix=fix or "correct the condition; docs/datasets.md describes what it can have",
    )
