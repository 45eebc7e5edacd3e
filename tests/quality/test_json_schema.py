"""Answers that are to be JSON of a schema."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.quality.json_schema import make_validator, open_filter, schema_problem
from tests.quality.completions import completion

SCHEMA = {
    "type": "object",
    "required": ["label"],
    "additionalProperties": False,
    "properties": {"label": {"enum": ["positive", "negative"]}, "why": {"$ref": "#/$defs/words"}},
    "$defs": {"words": {"type": "array", "items": {"type": "string"}}},
}


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "positive"}',
        ' {"label": "negative", "why": ["dull", "long"]}\n',
        '```json\n{"label": "positive"}\n```',
        '```\n{\n  "label": "positive"\n}\n```\n',
    ],
)
def test_what_fits_is_kept(text: str) -> None:
    assert open_filter({"schema": SCHEMA})(completion(text)) is None


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "not JSON: Expecting value"),
        ("positive", "not JSON: Expecting value"),
        ('{"label": "positive"', "not JSON: "),
        ('{"label": NaN}', "not JSON: NaN is not a JSON number"),
        ('Here it is: {"label": "positive"}', "not JSON: "),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"label": ' + "9" * 5000 + "}", "not JSON: "),
        ("{}", "at $, 'label' is a required property"),
        ('{"label": "neutral"}', "at $.label, 'neutral' is not one of ['positive', 'negative']"),
        ('{"label": "positive", "why": ["a", 1]}', "at $.why[1], 1 is not of type 'string'"),
        ('{"label": "' + "x" * 9999 + '"}', "at $.label, 'xxx"),
    ],
)
def test_what_does_not_fit_is_rejected_with_the_place(text: str, detail: str) -> None:
    said = open_filter({"schema": SCHEMA})(completion(text))
    assert said is not None
    assert said.startswith(detail)
    assert len(said) <= 300


def test_a_fence_is_borne_with_only_where_asked() -> None:
    fenced = completion('```json\n{"label": "positive"}\n```')
    assert open_filter({"schema": SCHEMA, "strip_fence": False})(fenced) is not None


def test_a_schema_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "label.schema.json"
    file.write_text(json.dumps(SCHEMA))
    keep = open_filter({"file": str(file)})
    assert keep(completion('{"label": "positive"}')) is None
    assert keep(completion("{}")) is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "set exactly one of `schema`"),
        ({"schema": {}, "file": "x.json"}, "set exactly one of `schema`"),
        ({"file": "nowhere.json"}, "quality.json-schema.file is 'nowhere.json': the file does not exist"),
        (
            {"schema": {"type": "objekt"}},
            "quality.json-schema.schema: it is not a valid JSON schema: at $.type",
        ),
        ({"schema": {"items": {"$ref": "#/$defs/nope"}}}, "has a $ref that cannot be resolved: /$defs/nope"),
        (
            {"schema": {"$ref": "https://example.org/schema"}},
            "has a $ref that cannot be resolved: https://example.org/schema",
        ),
        ({"shema": {}}, "quality.json-schema.shema: there is no such setting. Did you mean 'schema'?"),
    ],
)
def test_a_wrong_schema_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_filter(options)
    assert words in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read as JSON"):
        open_filter({"file": str(tmp_path / "x.json")})


def test_older_drafts_are_read_as_they_name_themselves() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3, "exclusiveMaximum": True}
    validator = make_validator(draft4, "here")
    assert schema_problem("2", validator) is None
    assert schema_problem("3", validator) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_every_json_value_fits_the_empty_schema_fenced_or_not(value: Any) -> None:
    validator = make_validator({}, "here")
    assert schema_problem(json.dumps(value), validator) is None
    assert schema_problem(f"```json\n{json.dumps(value, indent=1)}\n```", validator) is None


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    problem = schema_problem(text, make_validator(False, "here"))
    assert problem is not None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_schema_file_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "s.json").write_bytes('{"enum": ["größer"]}'.encode(encoding))
    judge = open_filter({"file": str(tmp_path / "s.json")})
    assert judge(completion('"größer"')) is None
    assert judge(completion('"kleiner"')) is not None


@pytest.mark.parametrize("levels", [150, 900, 5000])
def test_a_schema_that_is_nested_too_deeply(tmp_path: Path, levels: int) -> None:
    (tmp_path / "s.json").write_text('{"not": ' * levels + "{}" + "}" * levels)
    with pytest.raises(RecipeError, match="nested (too deeply|more than 200 levels deep)"):
        open_filter({"file": str(tmp_path / "s.json")})
