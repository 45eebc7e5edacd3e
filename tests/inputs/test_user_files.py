"""Files in the encodings that people have, and JSON that nobody can read."""

import codecs
import io
import json
from pathlib import Path

import pytest

from stillhouse.errors import RecipeError
from stillhouse.inputs.user_files import MAX_JSON_DEPTH, Unreadable, decode_text, parse_json, text_lines
from stillhouse.recipe.load import load_recipe

TEXT = "naïve café\n第二行\n"
ENCODED = [TEXT.encode(), *(TEXT.encode(name) for name in ("utf-8-sig", "utf-16", "utf-32"))]
ENCODED += [codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be")]


@pytest.mark.parametrize("data", ENCODED)
def test_a_byte_order_mark_names_the_encoding_and_is_no_text(data: bytes) -> None:
    assert decode_text(data) == TEXT
    lines = list(text_lines(io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]
    assert [line.decode() for line in lines] == TEXT.splitlines(keepends=True)


def test_files_that_were_put_together_have_a_mark_in_their_middle() -> None:
    stream = io.BufferedReader(io.BytesIO(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"))  # type: ignore[arg-type]
    assert list(text_lines(stream)) == [b"a\n", b"b\n"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"ok\nna\xefve", "line 2 is not valid UTF-8"),
        ("plain".encode("utf-16-le"), "zero bytes"),
        (codecs.BOM_UTF16_LE + b"a", "is not valid UTF-16"),
    ],
)
def test_what_is_in_no_such_encoding(data: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        decode_text(data)


def nested(levels: int) -> str:
    return (
        "[" * (levels // 2)
        + '{"a":' * (levels - levels // 2)
        + "1"
        + "}" * (levels - levels // 2)
        + "]" * (levels // 2)
    )


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH + 1, 900, 1100, 100_000])
def test_json_that_is_nested_too_deeply(levels: int, fast: bool) -> None:
    with pytest.raises(Unreadable, match=f"nested more than {MAX_JSON_DEPTH} levels deep"):
        parse_json(nested(levels), fast=fast)


@pytest.mark.parametrize("fast", [False, True])
def test_brackets_that_do_not_nest_too_deeply_are_read(fast: bool) -> None:
    for value in (json.loads(nested(MAX_JSON_DEPTH)), [[]] * 1000, {"a": "[" * 1000}, ["]" * 500 + "[{" * 500]):
        assert parse_json(json.dumps(value), fast=fast) == value
        assert parse_json(json.dumps(value).encode(), fast=fast) == value


def test_json_as_python_and_pandas_write_it() -> None:
    assert parse_json(b'{"a": NaN}', fast=True)["a"] != 0
    assert parse_json(b"[Infinity]", fast=True) == [float("inf")]
    assert parse_json("12345678901234567890123") == 12345678901234567890123
    for text in ("{half", b"\xff", '["\\ud800"]'):
        with pytest.raises(Unreadable):
            parse_json(text, fast=True)


RECIPE = "name: r\nprompts: {source: p.jsonl}\nteacher: {kind: scripted}\ndataset: {name: d}\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.yaml").write_bytes(RECIPE.encode(encoding))
    assert load_recipe(tmp_path / "r.yaml").name == "r"


def test_a_recipe_that_is_not_utf_8_or_nested_too_deeply(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="line 1 is not valid UTF-8"):
        load_recipe(file)
    file.write_text(RECIPE + f"quality: {'[' * 3000}\n")
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(file)
    file.write_text(RECIPE)
    with pytest.raises(
        RecipeError, match=r"--set label\.budget_usd: the value is not valid YAML: it is nested too deeply"
    ):
        load_recipe(file, [f"label.budget_usd={'[' * 3000}"])
