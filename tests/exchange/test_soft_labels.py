"""Soft labels out and back in: the teacher's distributions at the right positions, in the layouts that are promised."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.dataset.columns import completion_at, completion_row, completion_schema, record_batch
from stillhouse.dataset.encodings.top_k import COARSEST
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ExportOptions
from stillhouse.exchange.export import export_dataset
from stillhouse.exchange.formats.distillkit import CONFIG, CompressorConfig
from stillhouse.exchange.imports import ImportRequest, import_dataset
from stillhouse.exchange.tokens import PromptDecoder
from stillhouse.labelling.engine import label
from stillhouse.models.find import find_model
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import (
    Completion,
    Message,
    Prompt,
    SampledLabels,
    SoftLabels,
    Split,
    TeacherIdentity,
    TokenTrace,
)
from tests.conftest import MakeRecipe, make_tiny_model

SOFT = ("axolotl", "distillkit")
ENCODINGS: dict[str, dict[str, Any]] = {"top-k": {"k": 16}, "sampled": {"encoding": "sampled", "draws": 20}}


CONVERSATIONS: list[list[tuple[Any, str]]] = [
    [("user", "Explain a kettle.")],
    [("system", "Be brief."), ("user", "Explain a tram, please.")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "Explain\nan otter ☃")],
    *([("user", f"Question {number}?")] for number in range(9)),
]


@pytest.fixture(scope="module", params=list(ENCODINGS))
def dataset(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Real tokens of the tiny model's tokenizer, with made-up distributions."""
    from stillhouse.models.load import encode_prompt, load_tokenizer

    soft = SoftSettings(**ENCODINGS[request.param])
    tokenizer, generator = load_tokenizer(tiny_model), np.random.default_rng(0)
    files = find_model(str(tiny_model))
    teacher = TeacherIdentity(
        "transformers", "tiny", tokenizer_sha256=files.tokenizer_sha256, vocabulary_size=files.vocabulary_size
    )
    origin = Origin("import", "made up", teacher, soft=soft)
    schema = completion_schema(soft=soft.encoding)
    with new_version(tmp_path_factory.mktemp("labels"), "words", origin) as version:
        for number, turns in enumerate(CONVERSATIONS):
            prompt = Prompt(tuple(Message(role, content) for role, content in turns))
            text, ended = f"answer {number}" * (1 + number % 3), number % 2 == 0
            tokens = [*tokenizer(text)["input_ids"], *([tokenizer.eos_token_id] if ended else [])]
            trace = TokenTrace(
                np.asarray(encode_prompt(tokenizer, prompt.messages), np.int32),
                np.asarray(tokens, np.int32),
                np.full(len(tokens), -1.5, np.float32),
                made_up_labels(generator, len(tokens), files.vocabulary_size, soft),
            )
            row = Completion(
                id=f"{number:032x}",
                prompt=prompt,
                sample=0,
                text=text,
                finish_reason="stop" if ended else "length",
                prompt_tokens=len(trace.prompt_token_ids),
                completion_tokens=len(tokens),
                teacher="tiny",
                created_at="2026-01-01T00:00:00+00:00",
                trace=trace,
            )
            split: Split = "validation" if number % 4 == 3 else "train"
            version.add(split, record_batch([completion_row(row, soft=soft.encoding)], schema))
    return version.dataset


def made_up_labels(
    generator: np.random.Generator, time: int, vocabulary: int, soft: SoftSettings
) -> SoftLabels | SampledLabels:
    probabilities = generator.dirichlet(np.full(vocabulary, 0.05), size=time)
    if soft.draws is not None:
        drawn = [generator.choice(vocabulary, soft.draws, p=one) for one in probabilities]
        return SampledLabels.from_draws(np.array(drawn))
    order = np.argsort(-probabilities, axis=1)[:, : soft.k]
    listed = np.take_along_axis(probabilities, order, axis=1)
    tail = np.log(1 - listed.sum(axis=1))
    return SoftLabels(order.astype(np.int32), np.log(listed).astype(np.float16), tail.astype(np.float32))


def completions(dataset: Dataset) -> list[Completion]:
    """Every row, by prompt."""
    rows = [
        completion_at(batch, index)
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]
    return sorted(rows, key=lambda one: one.prompt.id)


def back_in(tmp_path: Path, format_: str, folder: Path, tokenizer: Path | None, into: str = "back") -> Dataset:
    request = ImportRequest(format_, [folder], root=tmp_path / "imported", into=into, tokenizer=tokenizer)
    return import_dataset(request).dataset


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for split in ("train", "validation") for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


@pytest.mark.parametrize("to", SOFT)
def test_out_and_back_in(dataset: Dataset, tiny_model: Path, tmp_path: Path, to: str) -> None:
    done = export_dataset(dataset, to, tmp_path / "out")
    assert done.rows == dataset.manifest.rows
    back = back_in(tmp_path, to, tmp_path / "out", tiny_model)
    assert back.manifest.soft == dataset.manifest.soft
    assert back.manifest.teacher.tokenizer_sha256 == dataset.manifest.teacher.tokenizer_sha256
    assert back.manifest.rows == dataset.manifest.rows
    for one, two in zip(completions(dataset), completions(back), strict=True):
        assert (one.prompt.messages, one.text, one.finish_reason) == (two.prompt.messages, two.text, two.finish_reason)
        assert one.trace is not None and two.trace is not None
        np.testing.assert_array_equal(one.trace.prompt_token_ids, two.trace.prompt_token_ids)
        np.testing.assert_array_equal(one.trace.completion_token_ids, two.trace.completion_token_ids)
        same_labels(one.trace.soft, two.trace.soft, renormalised=to == "axolotl")


def same_labels(one: Any, two: Any, *, renormalised: bool) -> None:
    if isinstance(one, SampledLabels):
        for name in ("token_ids", "counts", "offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        return
    assert isinstance(one, SoftLabels) and isinstance(two, SoftLabels)
    np.testing.assert_array_equal(one.token_ids, two.token_ids)
    expected = one.logprobs.astype(np.float64)
    if renormalised:
        expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
        assert (np.exp(two.tail_logprob) < 1e-2).all()
    else:
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
        np.testing.assert_allclose(np.exp(one.tail_logprob), np.exp(two.tail_logprob), atol=1e-2)
    kept = two.logprobs.astype(np.float64)  # rounded anew, as top-k rounds: by half a step at most
    np.testing.assert_allclose(expected, kept, atol=COARSEST / 2)
    np.testing.assert_allclose(np.exp(expected), np.exp(kept), atol=6e-3)


def test_axolotl_rows_stand_where_its_readme_says(dataset: Dataset, tmp_path: Path) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "out")
    by_prompt = {tuple(one.trace.prompt_token_ids): one for one in completions(dataset) if one.trace}
    for row in rows_of(tmp_path / "out"):
        time = len(row["input_ids"])
        assert {len(row[name]) for name in row} == {time}
        assert {len(inner) for name in row if name.startswith("target") for inner in row[name]} == {
            len(row["target_mask"][0])
        }
        first = row["labels"].index(next(label for label in row["labels"] if label != -100))
        assert row["labels"][first:] == row["input_ids"][first:]
        learnt = [any(mask) for mask in row["target_mask"]]
        assert learnt == [label != -100 for label in row["labels"][1:]] + [False]
        trace = by_prompt[tuple(row["input_ids"][:first])].trace
        assert trace is not None
        for place in np.flatnonzero(learnt):
            kept = np.array(row["target_mask"][place], bool)
            token_ids = np.array(row["target_token_ids"][place])[kept]
            position = place - first + 1
            soft = trace.soft
            assert soft is not None
            own = (
                soft.token_ids[position]
                if isinstance(soft, SoftLabels)
                else soft.token_ids[soft.offsets[position] : soft.offsets[position + 1]]
            )
            np.testing.assert_array_equal(token_ids, own)
            assert np.exp(np.array(row["target_logprobs"][place])[kept]).sum() == pytest.approx(1, abs=1e-5)


def test_distillkit_rows_are_packed_as_its_decoder_unpacks_them(dataset: Dataset, tmp_path: Path) -> None:
    export_dataset(dataset, "distillkit", tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / CONFIG).read_text())
    assert (config["k"], config["delta_encoding"], config["residual_bins"]) == (config["exact_k"], False, [])
    bits, k = int(np.ceil(np.log2(config["d"]))), config["k"]
    width = {"float16": 2, "float32": 4}[config["exact_dtype"]]
    by_prompt = {tuple(one.trace.prompt_token_ids): one for one in completions(dataset) if one.trace}
    lengths = set()
    for row in rows_of(tmp_path / "out"):
        lengths |= {len(row[name]) for name in row}
        learnt = [place for place, label in enumerate(row["labels"]) if label != -100]
        trace = by_prompt[tuple(row["input_ids"][: learnt[0] + 1])].trace
        assert trace is not None and trace.soft is not None
        assert len(learnt) == len(trace.completion_token_ids)
        assert sum(row["attention_mask"]) == learnt[-1] + 2
        for position, place in enumerate(learnt):
            assert len(row["compressed_logprobs"][place]) == k * width
            stream = "".join(f"{byte:08b}" for byte in row["bytepacked_indices"][place])
            token_ids = [int(stream[start : start + bits], 2) for start in range(0, k * bits, bits)]
            logprobs = np.frombuffer(bytes(row["compressed_logprobs"][place]), f"<f{width}")
            if isinstance(trace.soft, SoftLabels):
                assert token_ids == trace.soft.token_ids[position].tolist()
                np.testing.assert_array_equal(logprobs, trace.soft.logprobs[position])
            else:
                own = slice(*trace.soft.offsets[position : position + 2])
                counts = dict(zip(trace.soft.token_ids[own].tolist(), trace.soft.counts[own].tolist(), strict=True))
                drawn = {
                    t: round(float(np.exp(lp)) * 20) for t, lp in zip(token_ids, logprobs, strict=True) if lp > -1e4
                }
                assert drawn == counts
            assert np.isfinite(logprobs).all()
    assert len(lengths) == 1


@pytest.mark.parametrize("size", [2, 3, 255, 256, 257, 151_936])
def test_token_ids_of_any_vocabulary_pack_and_unpack(size: int) -> None:
    layout = CompressorConfig(size, 5, "float16")
    token_ids = np.random.default_rng(0).integers(0, size, (7, 5))
    token_ids[0, 0] = size - 1
    np.testing.assert_array_equal(layout.unpack(layout.pack(token_ids)), token_ids)


def test_rows_that_are_too_long_are_left_out_and_told(dataset: Dataset, tmp_path: Path) -> None:
    longest = max(row.prompt_tokens + row.completion_tokens for row in completions(dataset))  # type: ignore[operator]
    done = export_dataset(dataset, "distillkit", tmp_path / "out", ExportOptions(length=longest - 1))
    assert 0 < done.left_out < sum(dataset.manifest.rows.values())
    assert f"longer than {longest - 1} tokens" in done.why_left_out
    assert {len(row["input_ids"]) for row in rows_of(tmp_path / "out")} == {longest - 1}


def test_distillkits_own_plain_columns_are_read(dataset: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "out")
    plain = tmp_path / "plain.jsonl"
    with plain.open("w") as stream:
        for row in rows_of(tmp_path / "out"):
            labels = [*row["labels"][1:], -100]
            labels = [token if label != -100 else -100 for token, label in zip(row["input_ids"], labels, strict=True)]
            kept = {"input_ids": row["input_ids"], "labels": labels}
            stream.write(
                json.dumps(kept | {"token_ids": row["target_token_ids"], "top_values": row["target_logprobs"]}) + "\n"
            )
    back = back_in(tmp_path, "distillkit", plain, tiny_model)
    assert [one.text for one in completions(back)] == [one.text for one in completions(dataset)]


def test_axolotl_as_json_lines(dataset: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "out", ExportOptions("jsonl"))
    back = back_in(tmp_path, "axolotl", tmp_path / "out", tiny_model)
    assert [one.text for one in completions(back)] == [one.text for one in completions(dataset)]
    with pytest.raises(UsageError, match="--files is 'jsonl': the format distillkit only has parquet files"):
        export_dataset(dataset, "distillkit", tmp_path / "two", ExportOptions("jsonl"))


@pytest.mark.parametrize("to", SOFT)
def test_the_folder_opens_with_the_datasets_library(dataset: Dataset, tmp_path: Path, to: str) -> None:
    from datasets import load_dataset

    export_dataset(dataset, to, tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == dataset.manifest.rows


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("to", SOFT)
def test_text_alone_has_no_soft_labels(scripted_recipe: MakeRecipe, tmp_path: Path, to: str) -> None:
    text = asyncio.run(label(scripted_recipe(label={"soft": None}))).dataset
    with pytest.raises(
        UsageError, match=f"--to is '{to}': the format requires soft labels, and words/v001 has only text"
    ):
        export_dataset(text, to, tmp_path / "out")


def test_what_a_reader_needs_and_does_not_have(
    dataset: Dataset, tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "a")
    export_dataset(dataset, "distillkit", tmp_path / "d")
    with pytest.raises(UsageError, match="Name the tokenizer that produced them"):
        back_in(tmp_path, "axolotl", tmp_path / "a", None)
    other = make_tiny_model(tmp_path_factory.mktemp("other"), merges=3)
    with pytest.raises(UsageError, match=f"--tokenizer is '{other}': the files were exported with another tokenizer"):
        back_in(tmp_path, "axolotl", tmp_path / "a", other)
    (tmp_path / "a" / "export.json").unlink()
    strange = make_tiny_model(tmp_path_factory.mktemp("strange"), template=False)
    with pytest.raises(UsageError, match="no row of .* can be imported: .*other-template"):
        back_in(tmp_path, "axolotl", tmp_path / "a", strange)
    (tmp_path / "d" / CONFIG).write_text(yaml.safe_dump({"d": 300, "k": 16, "exact_k": 2, "delta_encoding": False}))
    with pytest.raises(UsageError, match="has exact_k 2 with k 16"):
        back_in(tmp_path, "distillkit", tmp_path / "d", tiny_model)
    (tmp_path / "d" / CONFIG).unlink()
    with pytest.raises(UsageError, match=f"{CONFIG} cannot be read"):
        back_in(tmp_path, "distillkit", tmp_path / "d", tiny_model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"soft": {"k": 0}}, r"export\.json: soft\.k is 0: it must be greater than or equal to 1"),
        (
            {"soft": {"encoding": "top-k", "kk": 3}},
            r"export\.json: soft\.kk: there is no such setting\. Did you mean 'k'",
        ),
        ({"soft": "top-k"}, r"export\.json: soft is 'top-k': it must be a mapping"),
    ],
)
def test_an_edited_note_is_refused_by_name(
    dataset: Dataset, tiny_model: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "a")
    note = tmp_path / "a" / "export.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    with pytest.raises(UsageError, match=words):
        back_in(tmp_path, "axolotl", tmp_path / "a", tiny_model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "line 1 has no 'labels'"),
        ({"labels": [0]}, "line 1: the columns differ in length"),
        ({"input_ids": ["x"]}, "line 1: the columns are not lists of numbers"),
        ({"target_mask": "shifted"}, "does not begin one row before the first label"),
    ],
)
def test_an_axolotl_file_that_is_not_right_is_told_with_its_line(
    dataset: Dataset, tiny_model: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    export_dataset(dataset, "axolotl", tmp_path / "out", ExportOptions("jsonl"))
    row = json.loads((tmp_path / "out/train.jsonl").read_text().splitlines()[0])
    if change == {"target_mask": "shifted"}:
        change = {"target_mask": [row["target_mask"][-1], *row["target_mask"][:-1]]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row | change))
    with pytest.raises(UsageError, match=words):
        back_in(tmp_path, "axolotl", tmp_path / "bad.jsonl", tiny_model)


# ------------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "one")],
        [("system", "s"), ("user", "one")],
        [("user", "one"), ("assistant", "two"), ("user", "three\n\n?")],
        [("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    ],
)
def test_a_chat_template_is_undone(tiny_model: Path, turns: list[tuple[Any, str]]) -> None:
    from stillhouse.models.load import encode_prompt, load_tokenizer

    messages = tuple(Message(role, content) for role, content in turns)
    prompt = PromptDecoder(tiny_model).prompt(encode_prompt(load_tokenizer(tiny_model), messages))
    assert prompt is not None and prompt.messages == messages


def test_without_a_chat_template_the_text_is_one_turn(tmp_path: Path) -> None:
    from stillhouse.models.load import encode_prompt, load_tokenizer

    folder = make_tiny_model(tmp_path / "plain", template=False)
    messages = (Message("user", "just text"),)
    prompt = PromptDecoder(folder).prompt(encode_prompt(load_tokenizer(folder), messages))
    assert prompt is not None and prompt.messages == messages


@pytest.mark.slow
def test_the_demo_teachers_template_is_undone(demo_teacher: Path) -> None:
    from stillhouse.models.load import encode_prompt, load_tokenizer

    tokens, tokenizer = PromptDecoder(demo_teacher), load_tokenizer(demo_teacher)
    for turns in ([("user", "hi")], [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c")]):
        messages = tuple(Message(role, content) for role, content in turns)  # type: ignore[arg-type]
        prompt = tokens.prompt(encode_prompt(tokenizer, messages))
        assert prompt is not None and prompt.messages == messages
