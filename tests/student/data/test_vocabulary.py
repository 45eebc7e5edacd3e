"""One tokenizer in vocabularies of unlike size: labels against brute force, and the whole way with padded models."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.errors import DatasetRefused, RecipeError, TeacherUnavailable, TrainingError
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import EncodingName
from stillhouse.stages.checks import check_labels, check_plan, check_student
from stillhouse.stages.stages import distill_stage, students_to_train
from stillhouse.student.data.completion_example import example_of, packed
from stillhouse.student.data.vocabulary import labels_for_student
from stillhouse.student.losses.base import DenseLabels, SparseLabels
from stillhouse.student.training.objective import load_objective
from stillhouse.student.training.train import distill
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_t5
from tests.labelled_rows import VOCABULARY, completion, numbered, write
from tests.precision import close_to_dense
from tests.student.data.test_examples import model_of, read

POSITIONS = 3


def logits(seed: int, vocabulary: int) -> Tensor:
    return torch.randn(POSITIONS, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def top_k_labels(teacher: Tensor, k: int) -> PackedLabels:
    """(positions, V) -> the k most likely tokens and the mass of all others."""
    p, ids = teacher.softmax(-1).sort(descending=True, dim=-1)
    with np.errstate(divide="ignore"):
        tail = np.log(p[:, k:].sum(-1).numpy())
    offsets = np.arange(0, POSITIONS * k + 1, k)
    return PackedLabels(
        ids[:, :k].reshape(-1).numpy().astype(np.int32),
        p[:, :k].log().reshape(-1).numpy().astype(np.float32),
        offsets,
        tail.astype(np.float32),
    )


def sampled_labels(*drawn: tuple[int, ...]) -> PackedLabels:
    """The labels of positions with these draws."""
    counts = [Counter(draws) for draws in drawn]
    return PackedLabels(
        np.array([token for count in counts for token in count], dtype=np.int32),
        np.array([math.log(n / count.total()) for count in counts for n in count.values()], dtype=np.float32),
        np.cumsum([0, *map(len, counts)]),
        np.full(len(drawn), -np.inf, dtype=np.float32),
    )


def value_and_gradient(labels: PackedLabels, student: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Forward KL from labels with the same number of entries at each position."""
    settings = StudentSettings.model_validate(
        {"init": {"model": "x"}, "loss": {"temperature": temperature, "cross_entropy_weight": 0.0}}
    )
    ids, logprobs = (torch.from_numpy(each).reshape(len(student), -1) for each in (labels.token_ids, labels.logprobs))
    sparse = SparseLabels(ids.long(), logprobs, torch.from_numpy(labels.tail_logprob))
    leaf = student.clone().requires_grad_()
    loss = load_objective(settings)(leaf, torch.zeros(len(leaf), dtype=torch.int64), sparse)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def close_to_labels(actual: Tensor, expected: Tensor, weight: float) -> None:
    """But for what is lost where log-probabilities of -20 or more are stored in float32; the loss itself is float64."""
    close_to_dense(actual, expected, summed=20 * weight, roundings=4, stored=torch.float32)


def brute_force(teacher: Tensor, student: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Position by position over plain probabilities: listed tokens that the student has, and the rest as one outcome."""
    leaf = student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for p, q in zip(teacher.softmax(-1), leaf.softmax(-1), strict=True):
        listed = [token for token in p.argsort(descending=True)[:k].tolist() if token < len(q)]
        outcomes = [(p[token], q[token]) for token in listed]
        others = [token for token in range(len(p)) if token not in listed]
        if len(listed) < len(q):
            outcomes.append((p[others].sum(), q[[token for token in others if token < len(q)]].sum()))
        both = torch.stack([torch.stack(pair) for pair in outcomes]) ** (1 / temperature)  # (outcomes, 2)
        p_, q_ = (both / both.sum(0)).T
        total = total + temperature**2 * (p_ * (p_ / q_).log()).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0]


@pytest.mark.numeric
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 9),
    padding=st.integers(0, 5),
    k=st.integers(1, 13),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_labels_of_a_padded_teacher_are_those_of_common_tokens_and_the_rest(
    seed: int, rows: int, padding: int, k: int, temperature: float
) -> None:
    teacher, student = logits(seed, rows + padding), logits(seed + 1, rows)
    k = min(k, rows + padding - 1)  # something is left
    known = labels_for_student(top_k_labels(teacher, k), rows, "top-k")
    assert known.token_ids.max() < rows
    value, gradient = value_and_gradient(known, student, temperature)
    expected, wanted = brute_force(teacher, student, k, temperature)
    close_to_labels(value, expected, POSITIONS * temperature**2)
    close_to_labels(gradient, wanted, temperature)


@pytest.mark.numeric
def test_where_all_tokens_are_listed_stored_and_live_labels_are_the_same() -> None:
    teacher, student = logits(1, 12), logits(2, 9)
    stored, _ = value_and_gradient(labels_for_student(top_k_labels(teacher, 12), 9, "top-k"), student)
    settings = StudentSettings.model_validate({"init": {"model": "x"}, "loss": {"cross_entropy_weight": 0.0}})
    live = load_objective(settings)(student, torch.zeros(POSITIONS, dtype=torch.int64), DenseLabels(teacher))
    p, q = teacher[:, :9].softmax(-1), student.softmax(-1)
    close_to_labels(stored, (p * (p / q).log()).sum(), POSITIONS)
    close_to_labels(live, stored, POSITIONS)


@pytest.mark.numeric
def test_sampled_labels_of_a_padded_teacher_are_unbiased() -> None:
    """Over all 125 triples of draws from 5 rows, 3 of which the student has: the exact mean of the gradients."""
    p = logits(3, 5)[0].softmax(-1)
    student = logits(4, 3)[:1]
    mean = torch.zeros(1, 3, dtype=torch.float64)
    for draws in itertools.product(range(5), repeat=3):
        value, gradient = value_and_gradient(labels_for_student(sampled_labels(draws), 3, "sampled"), student)
        assert value.isfinite()
        if min(draws) >= 3:  # nothing but padding was drawn
            assert float(value) == 0
            assert not gradient.any()
        mean += float(p[list(draws)].prod()) * gradient
    wanted = student.softmax(-1) - p[:3] / p[:3].sum()
    close_to_labels(mean, (1 - p[3:].sum() ** 3) * wanted, 1.0)


def test_labels_that_the_student_knows_are_left_alone() -> None:
    labels = top_k_labels(logits(1, 9), 4)
    assert labels_for_student(labels, 9, "top-k") is labels


# ------------------------------------------------------------------------------------------------------------- from files


@pytest.mark.parametrize("encoding", ["top-k", "sampled"])
def test_rows_of_a_known_tokenizer_may_name_padding(
    encoding: EncodingName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path, numbered([6, 5], encoding), encoding, monkeypatch)
    rows = [completion(number, encoding) for number in range(11)]
    traces = [row.trace for row in rows if row.trace is not None]
    tokens = 1 + max(int(ids.max()) for one in traces for ids in (one.prompt_token_ids, one.completion_token_ids))
    assert tokens < VOCABULARY  # some labels name a higher id
    own = replace(dataset.manifest.teacher, tokenizer_sha256="of both")
    shared = replace(dataset, manifest=dataset.manifest.model_copy(update={"teacher": own}))
    examples = read(shared, lm=model_of(tokens))
    for number, (row, trace) in enumerate(zip(rows, traces, strict=True)):
        soft = examples[number].soft
        assert trace.soft is not None
        assert soft is not None
        given = packed(trace.soft)
        assert soft.token_ids.tolist() == [token if token < tokens else -1 for token in given.token_ids.tolist()]
        alone = example_of(row, model_of(tokens), soft=True, by_text=False).soft
        assert alone is not None
        np.testing.assert_array_equal(soft.tail_logprob, alone.tail_logprob)
    with pytest.raises(
        TrainingError, match=rf"has the token {tokens - 1}, and the student has only {tokens - 1} tokens"
    ):
        read(shared, lm=model_of(tokens - 1))
    with pytest.raises(TrainingError, match="Use a student with the teacher's tokenizer"):
        read(dataset, lm=model_of(tokens))  # whose tokenizer nobody knows


def padded(model: Path, folder: Path, rows: int) -> Path:
    """The model with more rows in its embedding, at random, and the same tokenizer."""
    torch.manual_seed(7)
    wide = AutoModelForCausalLM.from_pretrained(model)
    wide.resize_token_embeddings(rows, mean_resizing=False)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture
def make_padded(tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> Any:
    """Makes recipes whose teacher and student have so many rows; the tokenizer has 260 tokens."""

    def make(teacher: int, student: int, soft: dict[str, Any] | None, **settings: Any) -> Recipe:
        parts = tiny_recipe().model_dump(mode="json", by_alias=True)
        shallow = make_tiny_model(tmp_path / "shallow", layers=2, seed=3)
        parts["teacher"]["model"] = str(padded(tiny_model, tmp_path / "teacher", teacher))
        parts["student"] |= {"init": {"model": str(padded(shallow, tmp_path / "student", student))}, **settings}
        parts["label"] |= {"soft": soft, "mode": "score"}  # a random teacher would write its padding
        return tiny_recipe(**{part: parts[part] for part in ("teacher", "student", "label")})

    return make


STORED: list[dict[str, Any]] = [
    {"soft": {"k": 64}},
    {"soft": {"encoding": "sampled", "draws": 50}},
    {"soft": None, "labels": "live"},
]


@pytest.mark.parametrize("settings", STORED, ids=["top-k", "sampled", "live"])
@pytest.mark.parametrize("rows", [(288, 264), (264, 288)], ids=["the teacher's is wider", "the student's is wider"])
def test_white_box_over_vocabularies_of_unlike_size(
    make_padded: Any, rows: tuple[int, int], settings: dict[str, Any]
) -> None:
    recipe = make_padded(*rows, **settings)
    check_student(recipe)
    dataset = asyncio.run(label(recipe)).dataset
    assert dataset.manifest.teacher.vocabulary_size == rows[0]
    student = students_to_train(recipe)[-1]
    card = distill_stage(recipe, student, dataset).card
    losses = [step.loss for step in card.log if step.loss is not None]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert all(step.eval_kl is None or 0 < step.eval_kl < math.inf for step in card.log)
    saved = json.loads((Path(recipe.students) / recipe.name / "white-box/config.json").read_text())
    assert saved["vocab_size"] == rows[1]


@pytest.mark.parametrize("settings", STORED, ids=["top-k", "sampled", "live"])
def test_white_box_over_the_padding_of_a_t5(tiny_recipe: MakeRecipe, tmp_path: Path, settings: dict[str, Any]) -> None:
    """T5's own has 32,128 rows for 32,100 tokens; a student of its tokenizer may have fewer rows, or more."""
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    parts["label"] |= {"soft": settings["soft"], "mode": "score"}
    labels = {key: value for key, value in settings.items() if key != "soft"}
    teacher = tiny_t5(tmp_path / "teacher", vocab_size=288)
    for rows in (262, 300):
        init = {"config": {"vocab_size": rows, "num_layers": 1, "d_ff": 8}}
        recipe = tiny_recipe(
            teacher=parts["teacher"] | {"model": str(teacher)},
            student=parts["student"]
            | {"init": init, **labels, "train": parts["student"]["train"] | {"num_train_epochs": 8}},
            label=parts["label"],
        )
        check_student(recipe)
        card = distill_stage(recipe, students_to_train(recipe)[-1], asyncio.run(label(recipe)).dataset).card
        losses = [step.loss for step in card.log if step.loss is not None]
        assert all(math.isfinite(loss) for loss in losses)
        assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize("rows", [(288, 264), (264, 288)])
def test_a_report_over_vocabularies_of_unlike_size(make_padded: Any, rows: tuple[int, int]) -> None:
    recipe = make_padded(*rows, {"k": 64})
    dataset = asyncio.run(label(recipe)).dataset
    for student in students_to_train(recipe):
        distill(recipe, student, dataset)
    _, *students = evaluate(recipe, students_to_train(recipe)[-1], dataset).report.models
    for model in students:
        assert model.kl_per_token is not None
        assert 0 < model.kl_per_token.mean < math.inf


# -------------------------------------------------------------------------------------------------------- other tokenizers


@pytest.fixture
def foreign(tiny_recipe: MakeRecipe, tmp_path: Path) -> Any:
    """Makes recipes whose student has another tokenizer than the teacher."""

    def make(**settings: Any) -> Recipe:
        parts = tiny_recipe().model_dump(mode="json", by_alias=True)
        other = make_tiny_model(tmp_path / "other", merges=2)
        return tiny_recipe(student=parts["student"] | {"init": {"model": str(other)}, **settings})

    return make


@pytest.mark.parametrize("labels", ["stored", "live"])
def test_another_tokenizer_is_refused_before_the_teacher_is_asked(foreign: Any, tmp_path: Path, labels: str) -> None:
    recipe = foreign(labels=labels)
    for check in (check_student, check_labels):
        with pytest.raises(RecipeError, match=r"its tokenizer \(sha256 .* is not that of teacher\.model") as caught:
            check(recipe)
        assert (caught.value.setting, caught.value.value) == ("student.init.model", str(tmp_path / "other"))
        assert recipe.teacher.model in str(caught.value)
        assert "set student.mode to 'black-box'" in str(caught.value)


def test_labels_are_not_made_for_a_student_that_cannot_learn_from_them(
    tiny_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    check_labels(tiny_recipe(student=None))
    drawn = parts["label"] | {"soft": {"encoding": "sampled", "draws": 50}}
    with pytest.raises(
        RecipeError, match=r"student\.loss\.kind is 'reverse-kl': .* sampled labels \(label\.soft\.encoding\)"
    ):
        check_labels(tiny_recipe(label=drawn, student=parts["student"] | {"loss": {"kind": "reverse-kl"}}))
    with pytest.raises(RecipeError, match=r"student\.init\.layers is 12"):
        check_labels(tiny_recipe(student=parts["student"] | {"init": {"from": "teacher", "layers": 12}}))
    check_labels(
        tiny_recipe(student=parts["student"] | {"init": {"model": "not/here"}})
    )  # it may be where it is trained
    assert "the student is not checked before labelling: student.init.model is 'not/here'" in caplog.text


def test_a_missing_teacher_is_reported_once(tiny_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    """The student that starts from it cannot be checked either, which need not be said."""
    teacher = tiny_recipe().teacher.model_dump(mode="json", exclude_unset=True)
    with pytest.raises(TeacherUnavailable, match="no folder has this path, and it is not the id of a model") as caught:
        check_plan(tiny_recipe(teacher=teacher | {"model": "data/models/smollm2"}))
    assert "stillhouse teacher fetch-demo" in str(caught.value.fix)
    assert "Repo id" not in str(caught.value)
    assert caplog.text == ""


def test_black_box_goes_on_by_text(foreign: Any) -> None:
    recipe = foreign(mode="black-box")
    check_student(recipe)
    check_labels(recipe)
    assert distill(recipe, recipe.student, asyncio.run(label(recipe)).dataset).steps > 0


def test_a_live_teacher_reads_the_text_of_a_dataset_with_other_tokens(
    foreign: Any, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The dataset's teacher is another than the live one, which has the student's tokenizer."""
    dataset = asyncio.run(label(tiny_recipe())).dataset
    recipe = foreign(labels="live")
    teacher = recipe.teacher.model_copy(update={"model": str(tmp_path / "other")})
    recipe = recipe.model_copy(update={"teacher": teacher})
    check_student(recipe)
    assert distill_stage(recipe, recipe.student, dataset).card.steps > 0
    stored = recipe.student.model_copy(update={"labels": "stored"})
    with pytest.raises(DatasetRefused, match="was labelled with the tokenizer of"):
        distill(recipe, stored, dataset)
