"""Prompts from files and templates, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import PromptError
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.records import Message, Prompt


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
    assert "none.jsonl': the file does not exist" in refusal(PromptSettings(source=str(tmp_path / "none.jsonl")))


def test_an_empty_source(tmp_path: Path) -> None:
    assert "has no rows" in refusal(write(tmp_path, []))


def test_a_row_that_is_not_json_is_named_by_its_line(tmp_path: Path) -> None:
    assert "line 2" in refusal(write(tmp_path, [{"prompt": "a"}, "{half"]))


def test_a_row_that_is_no_object(tmp_path: Path) -> None:
    assert "is a list" in refusal(write(tmp_path, ["[1]"]))


def test_a_row_without_the_templates_column(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, [{"word": "a"}, {"wrd": "b"}], "{{ word }}"))
    assert "uses the variable 'word', and row 2" in message
    assert "Did you mean 'wrd'?" in message


def test_a_template_with_an_unknown_variable_inside_a_branch(tmp_path: Path) -> None:
    assert "'colour'" in refusal(write(tmp_path, [{"word": "a"}], "{% if false %}{{ colour }}{% endif %}{{ word }}"))


def test_a_mapped_column_that_is_not_there(tmp_path: Path) -> None:
    assert "prompts.columns.word is 'w': row 1" in refusal(
        write(tmp_path, [{"x": "a"}], "{{ word }}", columns={"word": "w"})
    )


def test_a_broken_template_is_named_by_its_line(tmp_path: Path) -> None:
    assert "line 2 is not valid Jinja" in refusal(write(tmp_path, [{"word": "a"}], "x\n{% if %}"))


def test_a_missing_template(tmp_path: Path) -> None:
    settings = write(tmp_path, [{"word": "a"}]).model_copy(update={"template": "none.j2"})
    assert "prompts.template is 'none.j2'" in refusal(settings)


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


def test_parquet_with_a_damaged_page(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [f"question {number} " * 9 for number in range(900)]}), file)
    content = bytearray(file.read_bytes())
    content[60:400] = b"\xff" * 340
    file.write_bytes(content)
    assert "cannot be read as Parquet" in refusal(PromptSettings(source=str(file)))


def test_a_suffix_that_is_not_known() -> None:
    assert "Use a .jsonl, .csv, .tsv or .parquet file" in refusal(PromptSettings(source="prompts/x.xlsx"))


def test_the_hold_out_is_fixed_by_content_and_has_its_share() -> None:
    prompts = [Prompt((Message("user", f"word {n}"),)) for n in range(2000)]
    held_out = [prompt for prompt in prompts if split_of(prompt, 0.2) == "validation"]
    assert 320 < len(held_out) < 480
    assert all(split_of(prompt, 0.5) == "validation" for prompt in held_out)  # a larger share keeps the smaller one's
    assert not any(split_of(prompt, 0.0) == "validation" for prompt in prompts)


# --------------------------------------------------------------------------------------------------------- conversations

USER, ANSWER = {"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "An oak"}


@pytest.mark.parametrize("nothing", [None, float("nan"), []])
def test_what_is_null_is_not_there(tmp_path: Path, nothing: Any) -> None:
    (prompt,) = read_prompts(write(tmp_path, [{"messages": nothing, "prompt": "one"}]))
    assert prompt.messages == (Message("user", "one"),)
    (prompt,) = read_prompts(write(tmp_path, [{"messages": [USER], "prompt": nothing}]))
    assert prompt.text == "Name a tree."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": None}, "has neither a `prompt` nor `messages` (its 'prompt' is null)"),
        ({"messages": [], "prompt": None}, "(its 'messages' is empty and its 'prompt' is null)"),
        ({"prompt": " \n"}, "the 'prompt' of row 2 of {file} is blank"),
        ({"prompt": {"text": "a"}}, "the 'prompt' of row 2 of {file} is an object"),
        (
            {"messages": ["Name a tree."]},
            "turn 1 of 'messages' in row 2 of {file} is 'Name a tree.'. Write each turn as",
        ),
        ({"messages": [{"content": "x"}]}, "turn 1 of 'messages' in row 2 of {file} has the role None"),
        (
            {"messages": [USER, {"role": "human", "content": "x"}]},
            "turn 2 of 'messages' in row 2 of {file} has the role 'human'",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "has the role ['user']"),
        ({"messages": [{"role": "user", "content": None}]}, "(the user's) is null"),
        ({"messages": [{"role": "user"}]}, "(the user's) is null"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "(the user's) is an object"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is not text"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "row 2 of {file} has no user turn, only system"),
        ({"messages": [{"role": "user", "content": " "}]}, "row 2 of {file} has a user turn without text"),
        (
            {"messages": [{"role": "user", "content": ""}, ANSWER, USER]},
            "row 2 of {file} has a user turn without text",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "4"}]},
            "turn 2 of 'messages' in row 2 of {file} is a tool call",
        ),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}, USER]}, "is a tool call or its result"),
        (
            {"messages": [USER, ANSWER]},
            "prompts.last_turn is 'refuse': row 2 of {file} ends with an assistant turn",
        ),
        ({"messages": [ANSWER]}, "row 2 of {file} has no user turn, only assistant"),
    ],
)
def test_a_conversation_without_a_question_is_reported_with_its_row(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    settings = write(tmp_path, [{"prompt": "fine"}, row])
    assert words.format(file=settings.source) in refusal(settings)


def test_the_choice_of_a_last_turn_stands_in_its_refusal(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, [{"messages": [USER, ANSWER]}]))
    assert "Set it to 'reference'" in told
    assert "or to 'continue'" in told


def test_an_assistants_last_turn_as_the_reference(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"messages": [USER, {**ANSWER, "content": " "}]},
    ]
    settings = write(tmp_path, rows, last_turn="reference", system="Be brief.")
    first, second, third = read_prompts(settings)
    assert [turn.content for turn in first.messages] == ["Be brief.", "Name a tree."]
    assert [prompt.reference for prompt in (first, second, third)] == ["An oak", None, None]
    assert first.id == third.id
    assert len(second.messages) == 4


def test_two_references_of_one_row_are_refused_unless_they_are_the_same(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "reference": "An oak"}
    (prompt,) = read_prompts(write(tmp_path, [row], last_turn="reference"))
    assert prompt.reference == "An oak"
    (prompt,) = read_prompts(
        write(tmp_path, [{**row, "reference": None}], last_turn="reference", reference="reference")
    )
    assert prompt.reference == "An oak"
    assert "row 1" in refusal(write(tmp_path, [{**row, "reference": "A lime"}], last_turn="reference"))
    for messages in ([ANSWER], [USER, ANSWER, ANSWER]):
        assert "no user turn before" in refusal(write(tmp_path, [{"messages": messages}], last_turn="reference"))


def test_an_assistants_last_turn_to_go_on_from(tmp_path: Path) -> None:
    first, second = read_prompts(write(tmp_path, [{"messages": [USER, ANSWER]}, {"prompt": "a"}], last_turn="continue"))
    assert (first.continues, second.continues) == (True, False)
    assert first.messages[-1] == Message("assistant", "An oak")
    blank = {"messages": [USER, {**ANSWER, "content": ""}]}
    assert "cannot be continued" in refusal(write(tmp_path, [blank], last_turn="continue"))


def test_contents_in_parts_and_cells_that_are_no_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a tree."}]
    rows = [
        {"messages": [{"role": "user", "content": parts}]},
        {"prompt": 7},
        {"messages": [{"role": "user", "content": 0.5}]},
    ]
    assert [prompt.text for prompt in read_prompts(write(tmp_path, rows))] == ["Name a tree.", "7", "0.5"]
    pq.write_table(pa.table({"prompt": pa.array([b"kettle", None])}), tmp_path / "p.parquet")
    settings = PromptSettings(source=str(tmp_path / "p.parquet"))
    assert next(read_prompts(settings)).text == "kettle"
    assert "its 'prompt' is null" in refusal(settings)


def test_columns_are_mapped_without_a_template_too(tmp_path: Path) -> None:
    settings = write(tmp_path, [{"question": "a", "prompt": None}], columns={"prompt": "question"})
    assert next(read_prompts(settings)).text == "a"


# ------------------------------------------------------------------------------------------------------------ references


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), "", " \n"])
@pytest.mark.parametrize("named", [None, "gold"])
def test_null_nan_and_blank_are_no_reference(tmp_path: Path, nothing: Any, named: str | None) -> None:
    column = named or "reference"
    rows = [{"prompt": "a", column: nothing}, {"prompt": "b", column: "B"}]
    assert [prompt.reference for prompt in read_prompts(write(tmp_path, rows, reference=named))] == [None, "B"]


def test_references_of_parquet(tmp_path: Path) -> None:
    for values, references in (
        (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
        (pa.array([b"a", b" ", None]), ["a", None, None]),
        (pa.array([3, None, 0]), ["3", None, "0"]),
        (pa.array([True, None, False]), ["true", None, "false"]),
    ):
        pq.write_table(pa.table({"prompt": ["a", "b", "c"], "gold": values}), tmp_path / "p.parquet")
        settings = PromptSettings(source=str(tmp_path / "p.parquet"), reference="gold")
        assert [prompt.reference for prompt in read_prompts(settings)] == references


@pytest.mark.parametrize(("value", "what"), [(["A"], "a list"), ([], "a list"), ({"text": ["A"]}, "an object")])
def test_a_reference_that_is_no_text_names_row_and_column(tmp_path: Path, value: Any, what: str) -> None:
    settings = write(tmp_path, [{"prompt": "a", "gold": "A"}, {"prompt": "b", "gold": value}], reference="gold")
    assert f"the column 'gold' of row 2 of {settings.source} is {what}, and a reference must be a text" in refusal(
        settings
    )
    assert "prompts.reference is null: the column 'reference'" in refusal(
        write(tmp_path, [{"prompt": "b", "reference": value}])
    )


# ----------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_lines_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "p.jsonl").write_bytes('{"prompt": "Erkläre"}\r\n{"prompt": "второй"}\r\n'.encode(encoding))
    assert [one.text for one in read_prompts(PromptSettings(source=str(tmp_path / "p.jsonl")))] == ["Erkläre", "второй"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "na\xefve"}', "line 2 of {file} is not valid JSON: it is not valid UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "line 2 of {file} is not valid JSON: it is nested more than 200"),
        (
            b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}",
            "line 2 of {file} is not valid JSON: it is nested more than 200",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n' + line + b"\n")
    assert words.format(file=file) in refusal(PromptSettings(source=str(file)))
