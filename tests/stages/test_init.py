"""`stillhouse init`: a recipe and a template for a user's own file, which run as they are written."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import stillhouse
from stillhouse.cli.main import app
from stillhouse.errors import PromptError, UsageError
from stillhouse.prompts.load import read_prompts
from stillhouse.stages.init import init_recipe

SCRIPTED = {"teacher": {"kind": "scripted"}, "quality": [], "student": None}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


@pytest.mark.parametrize("teacher", ["demo", "api", "vllm"])
def test_the_recipe_labels_as_it_is_written(teacher: str) -> None:
    data = write_csv("My questions.csv", "Id,Question,Answer\n" + "".join(f"{n},What is {n}?,{n}\n" for n in range(30)))
    written = init_recipe(Path(), data, teacher=teacher)
    assert (written.prompt_column, written.reference_column) == ("Question", "Answer")
    recipe = stillhouse.load_recipe("recipe.yaml")
    assert recipe.name == recipe.dataset.name == "my-questions"
    result = stillhouse.label(stillhouse.load_recipe(recipe, SCRIPTED), progress=stillhouse.silent)
    rows = [*result.dataset.rows("train"), *result.dataset.rows("validation")]
    assert {row["prompt"][-1]["content"] for row in rows} == {f"What is {n}?" for n in range(30)}
    assert {row["reference"] for row in rows} == {str(n) for n in range(30)}


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        ([{"prompt": "Why?", "reference": "So."}], "Why?"),
        ([{"messages": [{"role": "user", "content": "Why?"}]}], "Why?"),
        ([{"id": 7, "My Text": "Why?"}], "Why?"),
        ([{"n": 1, "Frage": "Why?", "other": "x"}], "Why?"),
    ],
    ids=["prompt", "messages", "a column with a space", "the first column of text"],
)
def test_what_is_asked(rows: list[dict[str, Any]], messages: str) -> None:
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = init_recipe(Path("task"), Path("own.jsonl"))
    prompts = list(read_prompts(stillhouse.load_recipe("task/recipe.yaml").prompts))
    assert [one.messages[-1].content for one in prompts] == [messages]
    assert (written.template is None) == (written.prompt_column in ("prompt", "messages"))


def test_columns_may_be_named() -> None:
    pq.write_table(pa.table({"text": ["a"], "other": ["Why?"], "gold": ["So."]}), "own.parquet")
    init_recipe(Path(), Path("own.parquet"), prompt_column="other", reference_column="gold")
    (prompt,) = read_prompts(stillhouse.load_recipe("recipe.yaml").prompts)
    assert (prompt.messages[-1].content, prompt.reference) == ("Why?", "So.")


def test_the_demo_teacher_is_asked_for_short_answers_unless_told_otherwise() -> None:
    for number, (arguments, expected) in enumerate(
        [
            ({}, "You answer in one short sentence."),
            ({"system": "You are a 'dictionary'."}, "You are a 'dictionary'."),
            ({"teacher": "api"}, None),
            ({"teacher": "api", "system": "Be brief."}, "Be brief."),
        ]
    ):
        data = write_csv("own.csv", "question\nWhy?\n")
        init_recipe(Path(str(number)), data, **arguments)
        assert stillhouse.load_recipe(f"{number}/recipe.yaml").prompts.system == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"teacher": "gpt"}, UsageError, "--teacher is 'gpt': there is no such teacher. Choose from: demo, api, vllm"),
        ({"prompt_column": "questoin"}, UsageError, "--prompt-column is 'questoin': .* Did you mean 'question'"),
        ({"reference_column": "gold"}, UsageError, "--reference-column is 'gold'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    arguments: dict[str, Any], error: type[Exception], message: str, own_folder: Path
) -> None:
    data = write_csv("own.csv", "question\nWhy?\n")
    with pytest.raises(error, match=message):
        init_recipe(Path("task"), data, **arguments)
    assert {file.name for file in own_folder.iterdir()} == {"own.csv"}


def test_a_file_of_numbers_and_an_empty_one_are_refused() -> None:
    Path("numbers.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(PromptError, match="has no column of text. Name the column to ask about with --prompt-column"):
        init_recipe(Path(), Path("numbers.jsonl"))
    with pytest.raises(PromptError, match="has no rows"):
        init_recipe(Path(), write_csv("none.csv", "question\n"))


def test_an_edited_recipe_is_never_overwritten() -> None:
    data = write_csv("own.csv", "question\nWhy?\n")
    init_recipe(Path(), data)
    Path("recipe.yaml").unlink()
    Path("prompt.j2").write_text("mine")
    with pytest.raises(
        UsageError,
        match=r"prompt\.j2 exists already\. Remove it, or name another folder: stillhouse init own\.csv FOLDER",
    ):
        init_recipe(Path(), data)
    assert Path("prompt.j2").read_text() == "mine"
    assert not Path("recipe.yaml").exists()


def test_the_command_says_what_comes_next() -> None:
    write_csv("own.csv", "question,answer\nWhy?,So.\n")
    done = CliRunner().invoke(app, ["init", "own.csv"])
    assert done.exit_code == 0
    assert done.stdout.split("next:")[1].split("\n")[1:4] == [
        "  stillhouse teacher fetch-demo",
        "  stillhouse plan recipe.yaml",
        "  stillhouse run recipe.yaml",
    ]
    as_json = CliRunner().invoke(app, ["init", "own.csv", "two", "--json"])
    assert json.loads(as_json.stdout)["recipe"] == "two/recipe.yaml"
    refused = CliRunner().invoke(app, ["init", "own.csv"])
    assert (refused.exit_code, refused.stdout) == (2, "")
