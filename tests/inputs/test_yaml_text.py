"""Recipes as YAML: what is text, number or truth value, and what is refused with its lines."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import RecipeError
from stillhouse.inputs.yaml_text import YamlError, dump_yaml, parse_yaml
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.load import load_recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("\ufeff3", 3),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label: {budget_usd: 5}\nname: a\nlabel: {samples: 2}\n", "'label'.*lines 1 and 3"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "'b'.*lines 2 and 4"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("a: [{x: 1, x: 2}]", "'x' occurs twice"),
        ("'a': 1\na: 2", "'a' occurs twice"),
        ("1: 2", "key 1 is not a string"),
        ("? [1, 2]\n: 3", "is not a string"),
        ("a: &a [*a]", "contains the alias"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: !!python/object/apply:os.system ['true']", "python/object"),
        ("a: [", "line 1"),
        ("[" * 20_000, "deeply"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(YamlError, match=f"(?s){words}"):
        parse_yaml(text)


def test_aliases_that_grow_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(YamlError, match="aliases"):
        parse_yaml("\n".join(lines))


def test_aliases_and_merge_keys_are_read() -> None:
    text = "base: &base {k: 8, encoding: top-k}\nsoft: {<<: *base, k: 16}\n"
    assert parse_yaml(text)["soft"] == {"encoding": "top-k", "k": 16}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_what_is_written_is_read_back(data: Any) -> None:
    assert parse_yaml(dump_yaml(data)) == data


@pytest.mark.parametrize("text", ["1e-4", "yes", "010", "1:30", "2024-01-01", "null", "0x10", "~", "<<", "True"])
def test_a_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    assert parse_yaml(dump_yaml({"name": text})) == {"name": text}


def test_what_an_earlier_release_wrote_is_read_as_it_was() -> None:
    data = {"rate": 1e-05, "small": 1e-4, "name": "yes", "day": "2024-01-01", "none": None, "flag": True, "n": 8}
    assert parse_yaml(yaml.safe_dump(data)) == data


@pytest.mark.parametrize("setting", ["samples", "concurrency", "patience", "budget_usd", "max_rejected"])
def test_a_truth_value_is_no_number(setting: str) -> None:
    with pytest.raises(ValueError, match="it must be a number, not true or false"):
        LabelSettings.model_validate({setting: True})


RECIPE = """
name: mine
prompts: {source: p.jsonl, limit: LIMIT}
teacher: {kind: scripted}
label: {budget_usd: 5}
dataset: {name: mine}
"""


@pytest.mark.parametrize("limit", ["yes", "true", "3.7", "1:30"])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, limit: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("LIMIT", limit))
    with pytest.raises(RecipeError, match=r"prompts\.limit"):
        load_recipe(file)


def test_a_budget_that_a_second_section_would_drop_is_told_by_the_command(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("LIMIT", "3") + "label: {samples: 2}\n")
    done = CliRunner().invoke(app, ["label", str(file), "--no-flow"])
    assert done.exit_code == 2
    assert "'label' occurs twice" in " ".join(done.output.split())


def test_numbers_of_overrides_are_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("LIMIT", "3"))
    assert load_recipe(file, ["label.sampling.temperature=1e-1"]).label.sampling.temperature == 0.1
