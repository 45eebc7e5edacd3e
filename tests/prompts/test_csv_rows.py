"""Prompts from CSV and TSV files, as spreadsheets write them."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import PromptError
from stillhouse.prompts.csv_rows import csv_rows
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.prompts import PromptSettings


def rows(data: bytes, delimiter: str | None = None) -> list[dict[str, Any]]:
    return list(csv_rows(io.BufferedReader(io.BytesIO(data)), "own.csv", delimiter))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a,b\n1,x\n007,\n", [{"a": "1", "b": "x"}, {"a": "007", "b": None}]),
        (b"\xef\xbb\xbfa,b\r\n1,x\r\n", [{"a": "1", "b": "x"}]),
        ("a,b\n1,ü\n".encode("utf-16"), [{"a": "1", "b": "ü"}]),
        (b'a,b\n"two\nlines, and a comma","say ""hi"""\n', [{"a": "two\nlines, and a comma", "b": 'say "hi"'}]),
        (b"a;b\n1;x,y\n", [{"a": "1", "b": "x,y"}]),
        ("a\tb\r\n1\tx,y\r\n".encode("utf-16"), [{"a": "1", "b": "x,y"}]),
        (b"sep=;\r\na;b,c\r\n1;x\r\n", [{"a": "1", "b,c": "x"}]),
        (b"a,b\n1\n\n2,y", [{"a": "1", "b": None}, {"a": "2", "b": "y"}]),
        (b"a,b\n", []),
    ],
    ids=[
        "text stays text",
        "a byte-order mark",
        "UTF-16",
        "quoted",
        "semicolons",
        "tabs in UTF-16",
        "the separator on a line of its own",
        "short and blank rows",
        "a header alone",
    ],
)
def test_what_spreadsheets_write(data: bytes, expected: list[dict[str, Any]]) -> None:
    assert rows(data) == expected


def test_tabs() -> None:
    assert rows(b"a\tb\n1,5\tx\n", "\t") == [{"a": "1,5", "b": "x"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "own.csv has no header. Put the column names on its first line"),
        (b"a,b,a\n1,2,3\n", "the header of own.csv has the column 'a' twice. Rename one"),
        (b"a,b\n1,2\n1,2,3\n", "line 3 of own.csv has 3 fields, and the header has 2 columns"),
        (b'a,b\n1,"open\n2,3\n', "line 3 of own.csv is not valid CSV: unexpected end of data"),
        (b"sep=,\na,b\n1,2,3\n", "line 3 of own.csv has 3 fields"),
        (b'a,b\n1,"x"y\n', "line 2 of own.csv is not valid CSV"),
        (b"a,b\n1,\xff\n", "prompts.source is 'own.csv': the file is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, message: str) -> None:
    with pytest.raises(PromptError) as refused:
        rows(data)
    assert message in str(refused.value)


TEXT = st.text(st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_what_the_csv_module_writes_is_read_back(table: list[tuple[str, str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([("first", "second"), *table])
    found = [(row["first"], row["second"]) for row in rows(written.getvalue().encode())]
    assert found == table


def test_a_csv_file_becomes_prompts(tmp_path: Path) -> None:
    file, template = tmp_path / "own.csv", tmp_path / "own.j2"
    file.write_text("question,answer\nWhat is 2 + 2?,4\nWhat is a tram?,\n")
    template.write_text("{{ question }}")
    settings = PromptSettings(source=str(file), template=str(template), reference="answer")
    prompts = list(read_prompts(settings))
    assert [(one.messages[0].content, one.reference) for one in prompts] == [
        ("What is 2 + 2?", "4"),
        ("What is a tram?", None),
    ]
