"""Conversations out and back in: every turn as it was, what is no row told, a folder there whole or not at all."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.dataset.store import Dataset, versions
from stillhouse.errors import RecipeError, StorageFailed, UsageError
from stillhouse.exchange import export as exporting
from stillhouse.exchange.base import ExportOptions, FileType
from stillhouse.exchange.export import Exported, export_dataset
from stillhouse.exchange.imports import Imported, ImportRequest, import_dataset
from stillhouse.labelling.engine import label
from tests.conftest import MakeRecipe

CONVERSATIONAL = ("trl", "openai", "sharegpt")


@pytest.fixture
def dataset(scripted_recipe: MakeRecipe) -> Dataset:
    return asyncio.run(label(scripted_recipe())).dataset


def conversations(dataset: Dataset) -> dict[str, list[str]]:
    """Split -> its conversations, sorted."""
    return {
        split: sorted(
            json.dumps([row["prompt"], row["completion"]])
            for entry in dataset.files(split)  # type: ignore[arg-type]
            for row in pq.read_table(dataset.folder / entry.path, columns=["prompt", "completion"]).to_pylist()
        )
        for split in dataset.manifest.rows
    }


def bring_in(tmp_path: Path, format_: str, *files: Path, **more: Any) -> Imported:
    return import_dataset(ImportRequest(format_, files, root=tmp_path / "imported", into="back", **more))


def write(tmp_path: Path, *rows: Any, name: str = "given.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("files", ["jsonl", "parquet"])
@pytest.mark.parametrize("to", CONVERSATIONAL)
def test_out_and_back_in(dataset: Dataset, tmp_path: Path, to: str, files: FileType) -> None:
    done = export_dataset(dataset, to, tmp_path / "out", ExportOptions(files))
    assert [file.name for file in done.files] == [f"train.{files}", f"validation.{files}", "export.json"]
    assert done.rows == dataset.manifest.rows
    back = bring_in(tmp_path, to, tmp_path / "out").dataset
    assert conversations(back) == conversations(dataset)
    assert back.manifest.made_by == "import"
    assert back.manifest.teacher == dataset.manifest.teacher
    assert back.problems() == []


@pytest.mark.parametrize("to", CONVERSATIONAL)
def test_the_folder_opens_with_the_datasets_library(dataset: Dataset, tmp_path: Path, to: str) -> None:
    from datasets import load_dataset

    export_dataset(dataset, to, tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == dataset.manifest.rows


def test_what_the_files_look_like(dataset: Dataset, tmp_path: Path) -> None:
    for to in CONVERSATIONAL:
        export_dataset(dataset, to, tmp_path / to)
    trl, openai, sharegpt = (
        json.loads((tmp_path / to / "train.jsonl").read_text().splitlines()[0]) for to in CONVERSATIONAL
    )
    assert set(trl) == {"prompt", "completion"}
    assert openai == {"messages": [*trl["prompt"], *trl["completion"]]}
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["human", "gpt"]
    assert [turn["value"] for turn in sharegpt["conversations"]] == [turn["content"] for turn in openai["messages"]]


def test_turns_and_texts_of_every_kind_come_back(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": ' "Grüße" ☃ \u2028 \\n'},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "  2 "},
    ]
    first = bring_in(tmp_path, "openai", write(tmp_path, {"messages": turns}), validation=0).dataset
    for to in CONVERSATIONAL:
        export_dataset(first, to, tmp_path / to)
        back = bring_in(tmp_path, to, tmp_path / to, validation=0).dataset
        assert conversations(back)["train"] == [json.dumps([turns[:-1], turns[-1:]])]


# ------------------------------------------------------------------------------------------------- how an answer ended


def finish_reasons(dataset: Dataset) -> list[str]:
    return [
        str(reason)
        for split in dataset.manifest.rows
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for reason in batch.column("finish_reason").to_pylist()
    ]


@pytest.mark.parametrize("files", ["jsonl", "parquet"])
@pytest.mark.parametrize("format_", CONVERSATIONAL)
def test_a_row_that_says_how_its_answer_ended_is_believed(tmp_path: Path, format_: str, files: str) -> None:
    """In any server's words; a row that says nothing holds a whole answer, as a person wrote it."""
    asked, said = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}
    rows = {
        "trl": {"prompt": [asked], "completion": [said]},
        "openai": {"messages": [asked, said]},
        "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because"}]},
    }
    reasons = ["stop", "length", "MAX_TOKENS", "content_filter", "abort", None, ""]
    given = [{**rows[format_], "finish_reason": reason} for reason in reasons]
    if files == "parquet":
        file = tmp_path / "given.parquet"
        pq.write_table(pa.Table.from_pylist(given), file)
    else:
        file = write(tmp_path, *given, rows[format_])
    found = finish_reasons(bring_in(tmp_path, format_, file, validation=0).dataset)
    expected = ["stop", "length", "length", "content_filter", "other", "stop", "stop"]
    assert found == (expected if files == "parquet" else [*expected, "stop"])


@pytest.mark.parametrize("to", CONVERSATIONAL)
def test_an_export_of_text_tells_of_answers_that_were_cut_off(
    scripted_recipe: MakeRecipe, tmp_path: Path, to: str
) -> None:
    """Whoever trains on the files puts an end token behind every answer, and nothing in them says where none belongs."""
    whole = asyncio.run(label(scripted_recipe(dataset={"root": str(tmp_path / "labels"), "name": "whole"}))).dataset
    assert {*finish_reasons(whole)} == {"stop"}
    assert export_dataset(whole, to, tmp_path / "whole").notes == ()
    cut = asyncio.run(label(scripted_recipe(label={"sampling": {"max_tokens": 8}}))).dataset
    count = finish_reasons(cut).count("length")
    assert count > 0
    (note,) = export_dataset(cut, to, tmp_path / "cut").notes
    assert note.startswith(f"{count} answers are truncated (finish_reason: {count} length)")
    assert f"stillhouse datasets filter {cut.manifest.label} --where \"finish_reason = 'stop'\" --into" in note


# ---------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_is_replaced_by_force_alone_and_only_if_an_export_wrote_it(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, "openai", out)
    with pytest.raises(UsageError, match="add --force"):
        export_dataset(dataset, "sharegpt", out)
    export_dataset(dataset, "sharegpt", out, ExportOptions("parquet"), force=True)
    assert {path.name for path in out.iterdir()} == {"train.parquet", "validation.parquet", "export.json"}
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"no export wrote \(mine.txt\)"):
        export_dataset(dataset, "openai", out, force=True)
    (out / "export.json").unlink()
    with pytest.raises(UsageError, match="no export wrote"):
        export_dataset(dataset, "openai", out, force=True)
    assert (out / "mine.txt").read_text() == "keep me"
    with pytest.raises(UsageError, match="it is a file"):
        export_dataset(dataset, "openai", out / "mine.txt", force=True)


def test_an_export_is_there_whole_or_not_at_all(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, "openai", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_note", full)
    for target in (out, tmp_path / "new"):
        with pytest.raises(StorageFailed, match="No space left"):
            export_dataset(dataset, "sharegpt", target, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "new"))] == []


def test_unknown_formats_name_the_nearest(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--to is 'shargpt'.*Did you mean 'sharegpt'\?"):
        export_dataset(dataset, "shargpt", tmp_path / "out")
    with pytest.raises(UsageError, match="can only be imported"):
        export_dataset(dataset, "openai-log", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize(
    ("format_", "row", "reason"),
    [
        ("openai", {"messages": [{"role": "user", "content": "hi"}]}, "no-answer"),
        ("openai", {"messages": [{"role": "assistant", "content": "hi"}]}, "no-prompt"),
        ("openai", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, "empty"),
        (
            "openai",
            {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]},
            "tool-calls",
        ),
        (
            "openai",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [1]}]},
            "tool-calls",
        ),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not-text"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "x"}]}, "tool-calls"),
    ],
)
def test_what_cannot_be_a_row_is_counted_and_told(
    tmp_path: Path, format_: str, row: dict[str, Any], reason: str
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    if format_ == "sharegpt":
        good = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    file = write(tmp_path, good, row)
    done = bring_in(tmp_path, format_, file)
    assert dict(done.counts.skipped) == {reason: 1}
    assert done.counts.examples[reason].startswith(f"{file} line 2: ")
    assert f"left out: 1 {reason}" in done.dataset.manifest.how
    with pytest.raises(UsageError, match=f"no row of .* can be imported: 1 {reason}"):
        bring_in(tmp_path, format_, write(tmp_path, row))


@pytest.mark.parametrize(
    ("format_", "rows", "words"),
    [
        ("openai", ["{"], r"given.jsonl line 1 is not valid JSON .*Correct the line"),
        ("openai", [{"messages": []}], r"line 1: '\[\]' is not a list of turns"),
        ("openai", ["[1]"], r"begins with .\[. and is not a valid JSON array"),
        ("openai", ["7"], "line 1 is 7, not an object. Write one JSON object"),
        ("openai", [{"conversations": []}], "has no 'messages', only conversations"),
        (
            "openai",
            [{"messages": [{"role": "wizard", "content": "x"}]}],
            "the role 'wizard' is unknown. Use one of system",
        ),
        ("openai", [{"messages": ["hi"]}], "a turn has no 'role'"),
        ("sharegpt", [{"messages": []}], "has no 'conversations'"),
        ("trl", [{"prompt": "a"}], "has no 'prompt' and 'completion'"),
        ("trl", [{"prompt": 7, "completion": "b"}], "'prompt' is a int. Write it as a text"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_named_with_its_line_and_nothing_is_written(
    tmp_path: Path, format_: str, rows: list[Any], words: str
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(UsageError, match=words):
        bring_in(tmp_path, format_, write(tmp_path, *rows, good))
    assert not (tmp_path / "imported" / "back" / "v001").exists()


def test_other_shapes_that_people_have(tmp_path: Path) -> None:
    plain = bring_in(tmp_path, "trl", write(tmp_path, {"prompt": "2 + 2?", "completion": "4", "reference": "four"}))
    row = pq.read_table(plain.dataset.folder / plain.dataset.manifest.files[0].path).to_pylist()[0]
    assert (row["prompt"], row["reference"]) == ([{"role": "user", "content": "2 + 2?"}], "four")
    array = write(
        tmp_path,
        json.dumps([{"system": "S", "conversations": [{"from": "user", "value": "q"}, {"from": "gpt", "value": "a"}]}]),
        name="array.json",
    )
    back = bring_in(tmp_path, "sharegpt", array, validation=0, teacher="some-model").dataset
    assert json.loads(conversations(back)["train"][0])[0][0] == {"role": "system", "content": "S"}
    assert (back.manifest.teacher.model, back.manifest.version) == ("some-model", 2)


def test_the_same_prompt_again_is_another_sample(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": answer} for answer in "abb"]
    back = bring_in(tmp_path, "trl", write(tmp_path, *rows), validation=0).dataset
    table = pq.read_table(back.folder / back.manifest.files[0].path)
    assert table["sample"].to_pylist() == [0, 1, 2]
    assert len(set(table["id"].to_pylist())) == 3
    assert len(set(table["prompt_id"].to_pylist())) == 1


def test_the_share_that_is_held_out_is_by_content(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(200)]
    one = bring_in(tmp_path, "trl", write(tmp_path, *rows), validation=0.3).dataset
    two = bring_in(tmp_path, "trl", write(tmp_path, *reversed(rows)), validation=0.3).dataset
    assert conversations(one) == conversations(two)
    assert 30 < one.manifest.rows["validation"] < 90


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"validation": 1.5}, "--validation is 1.5: "),
        ({"into": "../x"}, "--into is '../x'"),
        ({"format": "x"}, "FORMAT is 'x'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    given = {"format": "trl", "files": [write(tmp_path, {"prompt": "a", "completion": "b"})], "into": "back"} | more
    with pytest.raises(UsageError, match=words):
        import_dataset(ImportRequest(root=tmp_path / "imported", **given))
    with pytest.raises(UsageError, match="none.jsonl does not exist"):
        bring_in(tmp_path, "trl", tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no .*file. Name the files to import"):
        bring_in(tmp_path, "trl", tmp_path / "empty")
    assert versions(tmp_path / "imported" / "back") == []


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    import tracemalloc

    def peak(rows: int) -> int:
        text = "word " * 200
        file = write(
            tmp_path, *({"prompt": f"{n} {text}", "completion": text} for n in range(rows)), name=f"{rows}.jsonl"
        )
        tracemalloc.start()
        bring_in(tmp_path, "trl", file)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many = peak(500), peak(5000)
    assert many < few + 5000 * 500  # a row has 2,000 characters


def test_an_export_says_what_it_wrote(dataset: Dataset, tmp_path: Path) -> None:
    done: Exported = export_dataset(dataset, "trl", tmp_path / "out")
    note = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (note["format"], note["dataset"], note["rows"]) == ("trl", "words/v001", done.rows)


# --------------------------------------------------------------------------------------------- what people's files are like


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("whole", [False, True], ids=["JSON lines", "a JSON array"])
def test_files_with_a_byte_order_mark(tmp_path: Path, encoding: str, whole: bool) -> None:
    turns = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "Groß."}]
    rows = [{"messages": turns}, {"messages": [{"role": "user", "content": "second"}, turns[1]]}]
    text = json.dumps(rows) if whole else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = tmp_path / "given.json"
    file.write_bytes(text.encode(encoding))
    told = conversations(bring_in(tmp_path, "openai", file).dataset)
    found = [json.loads(conversation) for split in told.values() for conversation in split]
    assert [completion[0]["content"] for _, completion in found] == ["Groß.", "Groß."]


@pytest.mark.parametrize("value", ["NaN", "null", '""', '" \\n"'])
def test_null_nan_and_blank_are_no_reference(tmp_path: Path, value: str) -> None:
    lines = [
        f'{{"prompt": "a", "completion": "b", "reference": {value}}}',
        '{"prompt": "c", "completion": "d", "reference": 7}',
    ]
    dataset = bring_in(tmp_path, "trl", write(tmp_path, *lines), validation=0.0).dataset
    (entry,) = dataset.files("train")
    assert pq.read_table(dataset.folder / entry.path).column("reference").to_pylist() == [None, "7"]


def test_a_reference_that_is_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "reference": ["b"]}
    with pytest.raises(UsageError, match=r"line 1: 'reference' is a list. Write it as a text"):
        bring_in(tmp_path, "trl", write(tmp_path, row))


@pytest.mark.parametrize("levels", [300, 900, 2000, 100_000])
@pytest.mark.parametrize("format_", ["openai", "sharegpt", "trl"])
def test_json_that_is_nested_too_deeply_is_named_with_its_line(tmp_path: Path, format_: str, levels: int) -> None:
    line = '{"messages": ' + "[" * levels + "]" * levels + "}"
    with pytest.raises(
        UsageError, match=r"given\.jsonl line 1 is not valid JSON \(it is nested more than 200 levels deep"
    ):
        bring_in(tmp_path, format_, write(tmp_path, line))
    with pytest.raises(UsageError, match=r"is not a valid JSON array \(it is nested more than 200 levels deep"):
        bring_in(tmp_path, format_, write(tmp_path, "[" + line + "]", name="array.json"))
