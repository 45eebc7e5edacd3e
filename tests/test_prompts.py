"""Prompts from files and templates, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import PromptSettings
from pipeline.errors import PromptError
from pipeline.prompts import read_prompts, split_of
from pipeline.records import Message, Prompt


def write(folder: Path, rows: list[Any], template: str | None = None, **settings: Any) -> PromptSettings:
    source = folder / "p.jsonl"
    source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    if template is not None:
        (folder / "p.j2").write_text(template)
        settings["template"] = str(folder / "p.j2")
    return PromptSettings(source=str(source), **settings)


def refusal(settings: PromptSettings) -> str:
    with pytest.raises(PromptError) as caught:
        list(read_prompts(settings))
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_template_makes_rows_into_messages(tmp_path: Path) -> None:
    settings = write(tmp_path, [{"word": "tram", "reference": "A tram."}], "Explain {{ word }}.\n", system="Be brief.")
    (prompt,) = read_prompts(settings)
    assert prompt.messages == (Message("system", "Be brief."), Message("user", "Explain tram."))
    assert (prompt.reference, prompt.text) == ("A tram.", "Explain tram.")


def test_columns_map_names_of_the_template_to_names_of_the_rows(tmp_path: Path) -> None:
    settings = write(tmp_path, [{"w": "tram", "gold": "x"}], "{{ word }}", columns={"word": "w"}, reference="gold")
    (prompt,) = read_prompts(settings)
    assert (prompt.text, prompt.reference) == ("tram", "x")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"prompt": [{"role": "user", "content": "Hi"}]},
    ],
)
def test_rows_without_a_template(tmp_path: Path, row: dict[str, Any]) -> None:
    (prompt,) = read_prompts(write(tmp_path, [row]))
    assert prompt.messages == (Message("user", "Hi"),)


def test_parquet_rows_and_the_limit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [f"q{n}" for n in range(5)]}), tmp_path / "p.parquet")
    prompts = list(read_prompts(PromptSettings(source=str(tmp_path / "p.parquet"), limit=3)))
    assert [prompt.text for prompt in prompts] == ["q0", "q1", "q2"]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    assert len(list(read_prompts(write(tmp_path, [{"prompt": "a"}, "", {"prompt": "b"}])))) == 2


def test_a_missing_source(tmp_path: Path) -> None:
    assert "no such file" in refusal(PromptSettings(source=str(tmp_path / "none.jsonl")))


def test_an_empty_source(tmp_path: Path) -> None:
    assert "has no rows" in refusal(write(tmp_path, []))


def test_a_row_that_is_not_json_is_named_by_its_line(tmp_path: Path) -> None:
    assert "line 2" in refusal(write(tmp_path, [{"prompt": "a"}, "{half"]))


def test_a_row_that_is_no_object(tmp_path: Path) -> None:
    assert "is a list" in refusal(write(tmp_path, ["[1]"]))


def test_a_row_without_the_templates_column(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, [{"word": "a"}, {"wrd": "b"}], "{{ word }}"))
    assert "'word', a column that row 2" in message
    assert "Did you mean 'wrd'?" in message


def test_a_template_with_an_unknown_variable_inside_a_branch(tmp_path: Path) -> None:
    assert "'colour'" in refusal(write(tmp_path, [{"word": "a"}], "{% if false %}{{ colour }}{% endif %}{{ word }}"))


def test_a_mapped_column_that_is_not_there(tmp_path: Path) -> None:
    assert "maps 'word' to the column 'w'" in refusal(
        write(tmp_path, [{"x": "a"}], "{{ word }}", columns={"word": "w"})
    )


def test_a_broken_template_is_named_by_its_line(tmp_path: Path) -> None:
    assert "its line 2 is wrong" in refusal(write(tmp_path, [{"word": "a"}], "x\n{% if %}"))


def test_a_missing_template(tmp_path: Path) -> None:
    settings = write(tmp_path, [{"word": "a"}]).model_copy(update={"template": "none.j2"})
    assert "prompts.template is none.j2" in refusal(settings)


def test_a_template_runs_in_the_sandbox(tmp_path: Path) -> None:
    assert "cannot be rendered" in refusal(
        write(tmp_path, [{"word": "a"}], "{{ word.__class__.__mro__[1].__subclasses__() }}")
    )


def test_a_template_that_renders_to_nothing(tmp_path: Path) -> None:
    assert "empty message" in refusal(write(tmp_path, [{"word": " "}], "{{ word }}"))


def test_a_row_with_neither_prompt_nor_messages(tmp_path: Path) -> None:
    assert "neither a `prompt` nor `messages`" in refusal(write(tmp_path, [{"text": "a"}]))


def test_a_message_with_a_wrong_role(tmp_path: Path) -> None:
    assert "role" in refusal(write(tmp_path, [{"messages": [{"role": "robot", "content": "x"}]}]))


def test_a_reference_column_that_is_not_there(tmp_path: Path) -> None:
    assert "prompts.reference is 'gold'" in refusal(write(tmp_path, [{"prompt": "a"}], reference="gold"))


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no")
    assert "cannot be read as Parquet" in refusal(PromptSettings(source=str(tmp_path / "p.parquet")))


def test_a_suffix_that_is_not_known() -> None:
    assert "give a .jsonl or a .parquet file" in refusal(PromptSettings(source="prompts/x.csv"))


def test_the_hold_out_is_fixed_by_content_and_has_its_share() -> None:
    prompts = [Prompt((Message("user", f"word {n}"),)) for n in range(2000)]
    held_out = [prompt for prompt in prompts if split_of(prompt, 0.2) == "validation"]
    assert 320 < len(held_out) < 480
    assert all(split_of(prompt, 0.5) == "validation" for prompt in held_out)  # a larger share keeps the smaller one's
    assert not any(split_of(prompt, 0.0) == "validation" for prompt in prompts)
