"""An encoder-decoder taught by an encoder-decoder, from its labels to the finished student."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.evaluation.measures.distance import distances
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.labelling.engine import label
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import load_language_model, load_weights
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.recipe.student import LoraSettings
from stillhouse.stages.checks import check_labels, check_student, student_of
from stillhouse.stages.stages import distill_stage
from stillhouse.student.data.examples import read_examples
from stillhouse.student.data.vocabulary import has_other_layout
from stillhouse.student.finished.folder import StudentCard, student_folder
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.stacks import kept_layers
from stillhouse.student.training.lora import add_adapters
from stillhouse.student.training.train import distill
from tests.conftest import WORDS, make_tiny_model
from tests.encoder_decoders import LETTERS, PHONEMES, tiny_bart, tiny_t5, tiny_t5_v11
from tests.precision import in_float64
from tests.student.training.test_train import power_cut_at, same

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TRAIN = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "learning_rate": 0.01,
    "logging_steps": 1,
}
MAKERS = {"t5": tiny_t5, "t5-v1.1": tiny_t5_v11, "bart": tiny_bart}
Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers, prompts whose letters are words of their own, and room for datasets that several tests share."""
    folder = tmp_path_factory.mktemp("spelt")
    for name, maker in MAKERS.items():
        maker(folder / name, layers=3, decoder_layers=2, vocabulary=[*LETTERS, *PHONEMES])
    spelt = [
        " ".join(part) for word in WORDS for cut in range(3) for part in (word[cut:], word[: len(word) - cut][::-1])
    ]
    rows = [{"prompt": one, "reference": " ".join(PHONEMES[len(one) % 7 : len(one) % 7 + 3])} for one in spelt]
    (folder / "spelt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Make:
    """Makes recipes with this teacher; other keywords are settings of the student."""

    def recipe(
        teacher: str = "t5", *, soft: dict[str, Any] | None = None, mode: str = "generate", **student: Any
    ) -> Recipe:
        named = f"{teacher}-{mode}-{(soft or {}).get('encoding', 'top-k')}"
        return recipe_from(
            {
                "name": "spelt",
                "prompts": {"source": str(place / "spelt.jsonl"), "holdout": 0.3},
                "teacher": {"kind": "transformers", "model": str(place / teacher), "options": {"batch_size": 8}},
                "label": {
                    "mode": mode,
                    "sampling": {"temperature": 1.0, "max_tokens": 9},
                    "soft": soft or {"k": 16},
                    "shard_size": 20,
                },
                "dataset": {"root": str(place / "labels"), "name": named},
                "students": str(tmp_path / "students"),
                "student": {
                    "init": {"from": "teacher", "layers": 1},
                    "loss": {"temperature": 2.0},
                    **student,
                    "train": {**TRAIN, **student.get("train", {})},
                },
                "evaluate": {"answers": 3, "latency_prompts": 2},
            },
            "test",
        )

    return recipe


def labelled(recipe: Recipe) -> Dataset:
    return asyncio.run(label(recipe)).dataset


def trained(recipe: Recipe) -> tuple[StudentCard, Path]:
    """By the stage that commands call, live teacher and all."""
    done = distill_stage(recipe, student_of(recipe), labelled(recipe))
    return done.card, Path(done.folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
    return state


def held_out(recipe: Recipe) -> MeasurementTask:
    batches = list(labelled(recipe).batches("validation"))
    rows = tuple(completion_at(batch, index) for batch in batches for index in range(batch.num_rows))
    assert len(rows) > 3
    vocabulary = ModelFiles("", Path(recipe.teacher.model)).vocabulary_size
    return MeasurementTask(rows, recipe.evaluate, max_tokens=9, vocabulary=vocabulary, soft=True)


# --------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("t5", {}),
        ("t5", {"labels": "live"}),
        ("t5", {"soft": {"encoding": "sampled", "draws": 50}, "loss": {"temperature": 1.0}}),
        ("t5", {"mode": "score"}),
        ("t5-v1.1", {"labels": "live"}),
        ("bart", {}),
    ],
)
def test_a_student_comes_nearer_to_its_teacher(make: Make, teacher: str, student: dict[str, Any]) -> None:
    recipe = make(teacher, train={"num_train_epochs": 12}, **student)
    check_labels(recipe)
    check_student(recipe)
    card, folder = trained(recipe)
    subjects = [
        ModelToMeasure("teacher", teacher, Path(recipe.teacher.model), is_teacher=True),
        ModelToMeasure("untrained", "before", folder.parent / "untrained"),
        ModelToMeasure("student", "after", folder),
    ]
    _, before, after = distances(subjects, held_out(recipe))
    assert before.kl is not None and after.kl is not None
    assert after.kl.mean < 0.8 * before.kl.mean
    told = [step.eval_kl for step in card.log if step.eval_kl is not None]
    assert told[-1] < told[0]
    if student.get("labels") == "live":  # all of the distribution, as `distances` has it
        assert told[-1] == pytest.approx(after.kl.mean, rel=1e-3)
    model = load_weights(folder, dtype=torch.float32)
    assert (len(model.get_encoder().state_dict()) > 0, model.config.is_encoder_decoder) == (True, True)
    assert ModelFiles("", folder).decoder_start_id == ModelFiles("", Path(recipe.teacher.model)).decoder_start_id
    assert load_language_model(folder, device="cpu").start_id is not None


def test_rows_hold_what_encoder_and_decoder_read(make: Make) -> None:
    recipe = make(mode="score")
    dataset, lm = labelled(recipe), load_language_model(Path(recipe.teacher.model), device="cpu")
    assert dataset.manifest.teacher.encoder_decoder
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher.model)
    stored = read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=100)
    anew = read_examples(dataset, "train", lm, soft=False, by_text=True, max_length=100)
    texts = [
        (completion_at(batch, index).prompt.messages[0].content, completion_at(batch, index).text)
        for batch in dataset.batches("train")
        for index in range(batch.num_rows)
    ]
    assert len(stored) == len(texts) > 15
    for (prompt, answer), one, other in zip(texts, stored, anew, strict=True):
        assert one.prompt.tolist() == other.prompt.tolist() == tokenizer(prompt)["input_ids"]
        assert one.completion.tolist() == other.completion.tolist() == tokenizer(answer)["input_ids"]
        assert one.completion[-1] == one.prompt[-1] == 1  # </s>
        assert one.soft is not None and len(one.soft.offsets) == len(one.completion) + 1


@pytest.mark.parametrize(("stop_at", "order"), [(2, "random"), (5, "group_by_length")])
def test_resuming_gives_the_student_of_an_unbroken_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, order: str
) -> None:
    """T5 learns with dropout, so the state of the generators has to come back too: within an epoch, and from its end."""
    recipe = make(train={"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": order})
    dataset, student = labelled(recipe), student_of(recipe)
    assert load_weights(Path(recipe.teacher.model), dtype=torch.float32).config.dropout_rate == 0.1
    whole = distill(recipe.model_copy(update={"students": str(tmp_path / "unbroken")}), student, dataset)
    with power_cut_at(stop_at, monkeypatch):
        distill(recipe, student, dataset)
    half_written = student_folder(recipe, student, "white-box", dataset).work / f"checkpoint-{stop_at + 1}"
    half_written.mkdir()
    resumed = distill(recipe, student, dataset)
    assert resumed.steps == whole.steps > stop_at
    assert same(weights(tmp_path / "students/spelt/white-box"), weights(tmp_path / "unbroken/spelt/white-box"))


def test_the_best_student_is_kept_and_the_training_ends(make: Make) -> None:
    recipe = make(early_stopping={"patience": 2}, train={"num_train_epochs": 60, "learning_rate": 0.2})
    card, _ = trained(recipe)
    told = {step.step: step.eval_kl for step in card.log if step.eval_kl is not None}
    assert len(told) < 60
    assert card.kept_step == min(told, key=lambda step: told[step])
    assert [*told].index(card.kept_step) == len(told) - 3


def test_black_box_learns_from_the_text(make: Make) -> None:
    card, folder = trained(black_box(make))
    losses = [step.loss for step in card.log if step.loss is not None]
    assert losses[-1] < 0.8 * losses[0]
    assert folder.name == "black-box"


def black_box(make: Make, **more: Any) -> Recipe:
    recipe = make(train={"num_train_epochs": 8}, **more)
    student = student_of(recipe).model_copy(update={"mode": "black-box"})
    return recipe.model_copy(update={"student": student})


# --------------------------------------------------------------------------------------------------------- parts of it


def test_copied_layers_keep_a_head_of_its_own(place: Path) -> None:
    """Flan-T5's config says that it shares its head with its embedding, and its weights are two."""
    teacher = load_weights(place / "t5-v1.1", dtype=torch.float32)
    student = copy_layers(teacher, kept_layers(teacher.config, 1))
    assert torch.equal(student.get_output_embeddings().weight, teacher.get_output_embeddings().weight)
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert not torch.equal(student.get_input_embeddings().weight, student.get_output_embeddings().weight)


@pytest.mark.parametrize("teacher", MAKERS)
def test_what_is_frozen_stays(make: Make, teacher: str) -> None:
    recipe = make(teacher, freeze=["embedding", "head"], train={"num_train_epochs": 1})
    _, folder = trained(recipe)
    before, after = weights(folder.parent / "untrained"), weights(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    still = before.keys() - moved
    ends = {name for name in before if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight"))}
    assert len(ends) == 4
    assert still == ends | {name for name in still if "final_logits_bias" in name}


@pytest.mark.parametrize("teacher", MAKERS)
def test_adapters_alone_learn_and_are_merged(make: Make, teacher: str) -> None:
    recipe = make(teacher, lora={"r": 4, "alpha": 8}, train={"num_train_epochs": 3})
    check_student(recipe)
    card, folder = trained(recipe)
    assert card.trainable_parameters < card.parameters
    before, after = weights(folder.parent / "untrained"), weights(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.endswith(".weight") and after[name].dim() == 2 for name in moved)
    assert not any("shared" in name or "embed" in name or "lm_head" in name for name in moved)
    assert {"encoder", "decoder"} == {part for name in moved for part in name.split(".") if part.endswith("coder")}
    assert load_language_model(folder, device="cpu").is_encoder_decoder
    base = AutoModelForSeq2SeqLM.from_pretrained(folder.parent / "untrained")
    adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    tokens = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "decoder_input_ids": torch.tensor([[0, 8, 9]])}
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    torch.testing.assert_close(whole(**tokens).logits, adapted(**tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}])
def test_activations_computed_again_change_nothing(make: Make, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    found = []
    for number, kwargs in enumerate([None, None, {"use_reentrant": True}]):
        train = {"gradient_checkpointing": number > 0, "gradient_checkpointing_kwargs": kwargs, "max_steps": 4}
        recipe = make(lora=lora, train=train).model_copy(update={"students": str(tmp_path / str(number))})
        found.append([step.loss for step in trained(recipe)[0].log if step.loss is not None])
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][-1]


def test_an_adapter_on_a_shared_table_is_refused(place: Path) -> None:
    model = load_weights(place / "t5", dtype=torch.float32)
    with pytest.raises(RecipeError, match="share their weights"):
        add_adapters(model, LoraSettings(target_modules=("lm_head",)), seed=0)


# ------------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("teacher", MAKERS)
@pytest.mark.numeric
@in_float64()
def test_a_report_s_figures_are_those_of_each_row_alone(make: Make, place: Path, tmp_path: Path, teacher: str) -> None:
    recipe = make(teacher)
    other = MAKERS[teacher](tmp_path / "other", layers=1, decoder_layers=1, seed=4, vocabulary=[*LETTERS, *PHONEMES])
    subjects = [
        ModelToMeasure("teacher", "one", place / teacher, is_teacher=True),
        ModelToMeasure("student", "two", other),
    ]
    task = held_out(recipe)
    kl = surprise = agreed = tokens = 0.0
    models = [AutoModelForSeq2SeqLM.from_pretrained(subject.folder, dtype=torch.float64).eval() for subject in subjects]
    start = ModelFiles("", place / teacher).decoder_start_id
    assert start is not None
    for row in task.rows:
        assert row.trace is not None
        answer = torch.tensor(row.trace.completion_token_ids.tolist())
        arguments = {
            "input_ids": torch.tensor([row.trace.prompt_token_ids.tolist()]),
            "decoder_input_ids": torch.cat([torch.tensor([start]), answer[:-1]])[None],
        }
        with torch.inference_mode():
            p, q = (model(**arguments).logits[0].double().log_softmax(-1) for model in models)
        kl += float((p.exp() * (p - q)).sum())
        surprise -= float(q.gather(-1, answer[:, None]).sum())
        agreed += float((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(answer)
    _, found = distances(subjects, task)
    assert found.kl is not None and found.perplexity is not None and found.agreement is not None
    assert found.kl.mean == pytest.approx(kl / tokens, rel=1e-9)
    assert found.perplexity.mean == pytest.approx(float(torch.tensor(surprise / tokens).exp()), rel=1e-9)
    assert found.agreement.mean == pytest.approx(agreed / tokens)


# ------------------------------------------------------------------------------------------------------------- bad input


def test_packing_is_refused_before_anything_is_labelled(make: Make) -> None:
    for init in ({"from": "teacher", "layers": 1}, {"config": {"num_layers": 1, "num_decoder_layers": 1}}):
        recipe = make(packing=True, init=init)
        for check in (check_labels, check_student):
            with pytest.raises(RecipeError, match="the student is an encoder-decoder") as caught:
                check(recipe)
            assert (caught.value.setting, caught.value.value) == ("student.packing", True)


def test_labels_of_the_other_kind_of_teacher(make: Make, place: Path) -> None:
    dataset = labelled(make())
    assert not has_other_layout(dataset, encoder_decoder=True, raise_if_other=True)
    assert has_other_layout(dataset, encoder_decoder=False, raise_if_other=False)  # then the text is read
    with pytest.raises(DatasetRefused, match=r"labelled by an encoder-decoder .* and the student is a causal model"):
        has_other_layout(dataset, encoder_decoder=False, raise_if_other=True)


def test_a_causal_student_learns_from_an_encoder_decoder_s_text(make: Make, place: Path, tmp_path: Path) -> None:
    """Its prompts end where the answer goes on, so token ids of the other kind of model are not taken."""
    recipe = make()
    dataset = labelled(recipe)
    causal = load_language_model(make_tiny_model(tmp_path / "causal"), device="cpu")
    rows = read_examples(dataset, "train", causal, soft=False, by_text=True, max_length=200)
    assert all(causal.tokenizer.decode(row.prompt.tolist()).endswith("<|assistant|>") for row in rows)
