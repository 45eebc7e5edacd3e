"""Conditions on columns: SQL as people know it, and nothing that is more than an expression."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset import condition
from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.condition import Condition
from stillhouse.errors import UsageError
from tests.dataset.made import SAMPLED, TOP_K, completion

SCHEMA = completion_schema(soft=None)
ROWS = record_batch(
    [
        completion_row(completion("kettle", 5), soft=None),
        completion_row(completion("it's an Otter", 300, finish_reason="length", cost_usd=None), soft=None),
    ],
    SCHEMA,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("completion_tokens < 200 and finish_reason = 'stop'", [True, False]),
        ("COMPLETION_TOKENS >= 300 OR id = ''", [False, True]),
        ("completion_tokens between 5 and 10", [True, False]),
        ("finish_reason in ('length', 'other')", [False, True]),
        ("finish_reason not in ['length']", [True, False]),
        ("cost_usd is null", [False, True]),
        ("cost_usd < 1", [True, None]),
        ("coalesce(cost_usd, 0) < 1", [True, True]),
        ("not (sample = 1)", [True, True]),
        ("prompt_text like '%it''s an%'", [False, True]),
        ("prompt_text ilike '%OTTER'", [False, True]),
        ("contains(completion_text, 'kettle') -- a remark", [True, False]),
        ("completion[1].content like 'A k%'", [True, False]),
        ("regexp_matches(lower(prompt_text), '^[a-z]+$')", [True, False]),
        ("length(prompt_text) > 8", [False, True]),
        ("prompt_text = 'kettle'", [True, False]),  # the system's words are no part of it
        ("completion_tokens + prompt_tokens = 8", [True, False]),
        ("cast(completion_tokens as varchar) = '5'", [True, False]),
        ("created_at >= '2026-11-01' and created_at < '2026-12'", [True, True]),
        ("case when sample = 0 then true else false end", [True, True]),
        ("rows.sample = 0", [True, True]),
        ("true", [True, True]),
    ],
)
def test_what_can_be_said(text: str, expected: list[bool | None]) -> None:
    assert Condition(text, SCHEMA).evaluate(ROWS).to_pylist() == expected


@pytest.mark.parametrize("soft", [TOP_K, SAMPLED])
def test_columns_of_soft_labels(soft: Any) -> None:
    schema = completion_schema(soft=soft.encoding)
    rows = record_batch([completion_row(completion("kettle", 5, soft=soft), soft=soft.encoding)], schema)
    assert Condition("list_avg(completion_logprobs) < -0.5", schema).evaluate(rows).to_pylist() == [True]


def test_only_what_is_named_is_read() -> None:
    assert Condition("completion_text = '' and sample = 0", SCHEMA).columns == ["completion", "sample"]
    assert Condition("true", SCHEMA).columns == ["id"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("completion_tokns < 200", "the column 'completion_tokns' does not exist. Did you mean 'completion_tokens'?"),
        ("lenght(prompt_text) > 1", "did you mean 'length'?"),
        ("completion_tokens", "evaluates to int32, not to true or false"),
        ("finish_reason < 5", "Cannot compare values of type VARCHAR"),
        ("completion_tokens < 'many'", "Could not convert string 'many' to INT32"),
        ("finish_reason = 'stop' and", "syntax error"),
        ("finish_reason = 'stop", "unterminated"),
        ("null", "not to true or false"),
    ],
)
def test_what_is_wrong_is_told(text: str, words: str) -> None:
    with pytest.raises(UsageError) as told:
        Condition(text, SCHEMA).evaluate(ROWS)
    assert words.lower() in str(told.value).lower()
    assert told.value.setting == "--where"
    assert told.value.exit_status == 2


@pytest.mark.parametrize(
    "text",
    [
        "(select count(*) from read_text('/etc/passwd')) > 0",
        "exists(from glob('/*'))",
        "id in (select content from read_text('/etc/passwd'))",
        "read_text('/etc/passwd') = ''",
        "getvariable('x') = 1",
        "current_setting('home_directory') = ''",
        "id = 'x') as keep, (read_text('/etc/passwd')",
        "true) as keep from rows; copy (select 1) to '/tmp/out' --",
        "true\n) as keep from read_csv('/etc/passwd') --",
        "true\n) as keep from rows where (true",
        "true\n) as keep from rows union all select (true",
        "true; attach 'x.db'",
        "count(*) > 0",
        "sum(sample) over () > 0",
        "columns(*) = 1",
        "list_filter(prompt, x -> true) = []",
        "sample = $1",
        "sample = ?",
        "len(range(1000000000000)) > 0",
        "repeat('x', 1000000000) = ''",
        "nextval('s') = 1",
        "pg_sleep(1) is null",
        "query('select 1') = 1",
        "struct_pack(a := (select 1)).a = 1",
    ],
)
def test_nothing_but_an_expression_gets_through(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    monkeypatch.setattr(Condition, "_query", lambda self, rows: run.append(self.text))
    with pytest.raises(UsageError) as refused:
        Condition(text, SCHEMA)
    assert (refused.value.setting, refused.value.value) == ("--where", text)
    assert run == []


def test_the_connection_itself_can_read_no_file(tmp_path: Path) -> None:
    import duckdb

    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    connection = condition._connect()
    for statement in (
        f"select * from read_csv('{secret}')",
        f"copy (select 1) to '{tmp_path / 'out'}'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        f"attach '{tmp_path / 'x.db'}'",
        "install httpfs",
        "select * from ROWS_IN_PYTHON",
    ):
        ROWS_IN_PYTHON = ROWS  # noqa: F841, N806 - what a replacement scan would find
        with pytest.raises(duckdb.Error):
            connection.execute(statement).fetchall()
    assert list(tmp_path.iterdir()) == [secret]


def test_without_duckdb_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match="pip install duckdb"):
        Condition("true", SCHEMA)


def test_the_tree_has_the_parts_that_are_looked_at() -> None:
    """A DuckDB whose syntax trees look otherwise must not let anything through."""
    connection = condition._connect()
    tree = json.dumps(condition._tree(connection, "select (\nlower(id) = 'a'\n) as keep from rows"))
    for part in ('"class": "FUNCTION"', '"function_name": "lower"', '"column_names": ["id"]', '"select_list"'):
        assert part in tree
