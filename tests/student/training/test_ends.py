"""An end token is learnt only where the teacher ended: rows that are read as text, of every kind of student."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, processors
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.measures.distance import distances
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.labelling.engine import label
from stillhouse.models.load import LanguageModel, encode_completion, load_language_model
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion, FinishReason, finish_reason_of, is_complete
from stillhouse.student.data.batches import collator
from stillhouse.student.data.completion_example import example_of
from stillhouse.student.data.examples import read_examples
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_bart, tiny_t5
from tests.labelled_rows import completion, write
from tests.precision import in_float64

MAKERS: dict[str, Callable[[Path], Path]] = {"causal": make_tiny_model, "t5": tiny_t5, "bart": tiny_bart}
REASONS: dict[str | None, bool] = {
    "stop": True,
    None: True,  # nobody said so: a person's text, or an import's
    "length": False,
    "content_filter": False,
    "tool_calls": False,  # the turn went on, with a call that the row does not hold
    "other": False,
}
TEXT = "A kettle boils"


@pytest.fixture(scope="module", params=MAKERS)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(MAKERS[request.param](tmp_path_factory.mktemp("models") / "model"), device="cpu")


def row_that_ended(number: int, reason: Any, *, text: str = TEXT, tokens: bool = False) -> Completion:
    whole = completion(number, "top-k" if tokens else None, text)
    return replace(whole, finish_reason=reason)


def spelled(lm: LanguageModel, ids: Any) -> str:
    return str(lm.tokenizer.decode([int(one) for one in ids], skip_special_tokens=False)).replace(" ", "")


def test_every_finish_reason_is_decided() -> None:
    assert {*get_args(FinishReason), None} == REASONS.keys()
    assert {reason: is_complete(reason) for reason in REASONS} == REASONS


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("model_length", "length"),
        ("max_output_tokens", "length"),
        ("recitation", "content_filter"),
        ("tool_use", "tool_calls"),
        ("abort", "other"),
    ],
)
def test_what_servers_call_it(word: str, reason: str) -> None:
    assert finish_reason_of(word) == reason


def test_rows_of_text_end_where_the_teacher_ended(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file and one at a time alike; what comes before the end is the same."""
    rows = [row_that_ended(number, reason) for number, reason in enumerate(REASONS)]
    dataset = write(tmp_path, [rows[:3], rows[3:]], None, monkeypatch)
    examples = read_examples(dataset, "train", lm, soft=False, by_text=False, max_length=200)
    whole = encode_completion(lm, TEXT)
    (end,) = lm.end_ids
    for number, row in enumerate(rows):
        expected = whole if REASONS[row.finish_reason] else whole[:-1]
        assert whole[-1] == end and end not in whole[1:-1]
        assert examples[number].completion.tolist() == expected
        assert example_of(row, lm, soft=False, by_text=False).completion.tolist() == expected
    assert (len(examples), examples.cut_off) == (len(rows), 4)
    assert all(TEXT.replace(" ", "") in spelled(lm, examples[number].completion) for number in range(len(rows)))


@pytest.mark.parametrize("packed", [False, True])
def test_batches_have_as_many_ends_as_the_teacher_wrote(tmp_path: Path, packed: bool) -> None:
    lm = load_language_model(make_tiny_model(tmp_path / "tiny"), device="cpu")
    rows = [row_that_ended(number, reason) for number, reason in enumerate(["length", "stop", "other", None, "length"])]
    examples = [example_of(row, lm, soft=False, by_text=False) for row in rows]
    labels = collator(lm.pad_id, pack_to=120 if packed else None)(examples)["labels"]
    assert int((labels == lm.end_ids[0]).sum()) == 2


def test_rows_with_token_ids_stay_as_the_teacher_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their finish reason says; where one beside them has text alone, that one goes by its reason."""
    lm = load_language_model(make_tiny_model(tmp_path / "tiny"), device="cpu")
    with_tokens = [row_that_ended(number, reason, tokens=True) for number, reason in enumerate(["stop", "length"])]
    text = replace(row_that_ended(2, "length", tokens=True), trace=None)
    dataset = write(tmp_path / "data", [[*with_tokens, text]], "top-k", monkeypatch)
    examples = read_examples(dataset, "train", lm, soft=False, by_text=False, max_length=200)
    for number, row in enumerate(with_tokens):
        assert row.trace is not None
        assert examples[number].completion.tolist() == row.trace.completion_token_ids.tolist()
    assert examples[2].completion.tolist() == encode_completion(lm, TEXT)[:-1]
    assert examples.cut_off == 1
    by_text = read_examples(dataset, "train", lm, soft=False, by_text=True, max_length=200)
    assert [one.completion.tolist()[-1] == lm.end_ids[0] for one in (by_text[0], by_text[1], by_text[2])] == [
        True,
        False,
        False,
    ]


def test_whatever_a_tokenizer_puts_behind_a_text_belongs_to_its_end(tmp_path: Path) -> None:
    """mBART's answers end with `</s>` and the language."""
    lm = load_language_model(tiny_bart(tmp_path / "bart"), device="cpu")
    core: Tokenizer = lm.tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> <unk>", special_tokens=[("<s>", 0), ("</s>", 2), ("<unk>", 3)]
    )
    cut = encode_completion(lm, "ab", ended=False)
    assert len(cut) == 3 and cut[0] == 0 and not {2, 3} & {*cut}
    assert encode_completion(lm, "", ended=False) == []


def test_a_row_without_a_completion_token_is_left_out(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its tokens went into reasoning, say: there is nothing to learn, and a mean over nothing is no number."""
    rows = [row_that_ended(0, "stop"), row_that_ended(1, "length", text=""), row_that_ended(2, "stop", text="")]
    dataset = write(tmp_path, [rows], None, monkeypatch)
    examples = read_examples(dataset, "train", lm, soft=False, by_text=False, max_length=200)
    assert (len(examples), examples.empty, examples.too_long) == (2, 1, 0)
    assert examples[1].completion.tolist()[-1] == lm.end_ids[0]


@pytest.mark.numeric
@in_float64()
def test_distances_are_taken_on_what_the_teacher_wrote(tmp_path: Path) -> None:
    """Neither KL nor perplexity asks for an end that the teacher did not write; an empty text counts for nothing."""
    folders = [make_tiny_model(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    subjects = [
        ModelToMeasure("teacher", "one", folders[0], is_teacher=True),
        ModelToMeasure("student", "other", folders[1]),
    ]
    rows = (row_that_ended(0, "length"), row_that_ended(1, "stop"), row_that_ended(2, "length", text=""))
    task = MeasurementTask(
        rows=rows, settings=EvaluateSettings(), max_tokens=9, vocabulary=300, soft=False, prompts=rows
    )
    found = distances(subjects, task)[1]
    lms = [load_language_model(folder, device="cpu") for folder in folders]
    surprise = kl = 0.0
    tokens = 0
    for row in rows[:2]:
        example = example_of(row, lms[0], soft=False, by_text=True)
        completion_ids = encode_completion(lms[0], TEXT)[: len(example.completion)]
        ids = torch.tensor([[*example.prompt.tolist(), *completion_ids]])
        p, q = (lm.model(ids).logits[0, len(example.prompt) - 1 : -1].double().log_softmax(-1).detach() for lm in lms)
        kl += float((p.exp() * (p - q)).sum())
        surprise -= float(q.gather(-1, torch.tensor(completion_ids)[:, None]).sum())
        tokens += len(completion_ids)
    assert tokens == 2 * len(encode_completion(lms[0], TEXT)) - 1
    assert found.kl is not None and found.perplexity is not None
    assert found.kl.mean == pytest.approx(kl / tokens, rel=1e-9)
    assert found.perplexity.mean == pytest.approx(math.exp(surprise / tokens), rel=1e-9)


@pytest.fixture
def cut_off(tiny_recipe: MakeRecipe) -> tuple[Recipe, Dataset]:
    """A black-box recipe, and its dataset of text in which most answers reached `max_tokens`."""
    scripted = {"kind": "scripted", "options": {"vocabulary": 64}}
    recipe = tiny_recipe(
        label={"sampling": {"max_tokens": 8}, "shard_size": 4},
        student={
            "init": {"from": "teacher", "layers": 2, "choose": "even"},
            "mode": "black-box",
            "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        },
    )
    return recipe, asyncio.run(label(recipe.model_copy(update={"teacher": type(recipe.teacher)(**scripted)}))).dataset


def test_the_command_says_how_many_rows_were_cut_off(
    cut_off: tuple[Recipe, Dataset], recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe, dataset = cut_off
    reasons = [reason for batch in dataset.batches("train") for reason in batch.column("finish_reason").to_pylist()]
    cut = reasons.count("length")
    assert 0 < cut <= len(reasons)
    done = CliRunner().invoke(app, ["distill", str(recipe_file(recipe))])
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert f"{cut} of its {len(reasons)} rows are completions without an end token" in told
    card = json.loads((Path(recipe.students) / "test/black-box/student.json").read_text())
    assert (card["rows_cut_off"], card["rows_empty"]) == (cut, 0)
    readme = (Path(recipe.students) / "test/black-box/README.md").read_text()
    assert f"{cut} of them cut off before their end and learnt without an end token" in readme
