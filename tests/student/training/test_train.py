"""Training: resume equals an unbroken run, gradients are means over tokens, and what does not fit is refused."""

import asyncio
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError, TrainingError
from stillhouse.labelling.engine import label
from stillhouse.models.load import load_language_model
from stillhouse.progress import silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import SoftLabels
from stillhouse.student.data.batches import collator
from stillhouse.student.data.examples import read_examples
from stillhouse.student.finished.folder import read_card, student_folder
from stillhouse.student.training import train as training
from stillhouse.student.training.arguments import training_arguments
from stillhouse.student.training.objective import load_objective
from stillhouse.student.training.train import distill
from stillhouse.student.training.trainer import StudentTrainer
from stillhouse.student.training.untrained import prepare_untrained
from tests.conftest import MakeRecipe, make_tiny_model
from tests.precision import close_to_dense, in_float64


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("mode", ["white-box", "black-box"])
def test_a_student_learns(labelled: tuple[Recipe, StudentSettings, Dataset], mode: str) -> None:
    recipe, student, dataset = labelled
    longer = {**student.train, "num_train_epochs": 15}
    card = distill(recipe, student.model_copy(update={"mode": mode, "train": longer}), dataset)
    losses = [step.loss for step in card.log if step.loss is not None]
    assert losses[-1] < 0.7 * losses[0]
    assert sum(step.eval_loss is not None for step in card.log) == 15
    assert (card.variant, card.rows) == (mode, dataset.manifest.rows["train"])
    assert read_card(Path(recipe.students) / recipe.name / mode) == card
    assert not list((Path(recipe.students) / recipe.name).glob(".work-*-*"))


def test_a_finished_student_is_not_trained_again(
    labelled: tuple[Recipe, StudentSettings, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student, dataset = labelled
    card = distill(recipe, student, dataset)
    monkeypatch.setattr(training, "StudentTrainer", None)  # calling it would raise
    assert distill(recipe, student, dataset) == card


class StopAt(TrainerCallback):
    """Ends the process's training as a crash would: by an exception in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self._step:
            raise RuntimeError("power cut")


@contextmanager
def power_cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training within breaks off after this step."""

    class Breaking(StudentTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(StopAt(step))

    with monkeypatch.context() as patch:
        patch.setattr(training, "StudentTrainer", Breaking)
        with pytest.raises(RuntimeError, match="power cut"):
            yield


@pytest.mark.parametrize(
    ("stop_at", "order"), [(2, "random"), (3, "random"), (5, "random"), (1, "group_by_length"), (4, "group_by_length")]
)
def test_resuming_gives_the_student_of_an_unbroken_run(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, order: str
) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    parts["student"]["train"] |= {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3}
    parts["student"]["train"] |= {"train_sampling_strategy": order}
    recipe = tiny_recipe(student=parts["student"])
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    unbroken = recipe.model_copy(update={"students": str(tmp_path / "unbroken")})
    whole = distill(unbroken, recipe.student, dataset)

    with power_cut_at(stop_at, monkeypatch):
        distill(recipe, recipe.student, dataset)
    half_written = student_folder(recipe, recipe.student, "white-box", dataset).work / f"checkpoint-{stop_at + 1}"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"cut short")
    resumed = distill(recipe, recipe.student, dataset)
    assert resumed.steps == whole.steps
    assert same(weights(tmp_path / "students/test/white-box"), weights(tmp_path / "unbroken/test/white-box"))


@pytest.mark.numeric
@in_float64()
def test_the_gradient_is_a_mean_over_tokens_however_the_step_is_cut(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    """One step on 8 rows, in micro-batches of 8, 4 and 1: rows of unlike lengths, one gradient, one loss."""
    recipe, student, dataset = labelled
    start = prepare_untrained(recipe, student)
    results = []
    for size in (8, 4, 1):
        cut = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 8 // size,
            "max_steps": 1,
            "train_sampling_strategy": "sequential",
            "eval_strategy": "no",
        }
        one = student.model_copy(
            update={"train": {**student.train, **cut, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1}}
        )
        lm = load_language_model(start.path)
        rows = read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=100)
        assert len(set(rows.lengths[:8].tolist())) > 1
        eight: Any = torch.utils.data.Subset(rows, range(8))
        trainer = StudentTrainer(
            lm, load_objective(one), training_arguments(recipe, one, tmp_path / str(size)), eight, eight
        )
        trainer.train()
        results.append((trainer.state.log_history[0]["loss"], lm.model.state_dict()))
    for loss, state in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-9)
        for key, tensor in state.items():
            close_to_dense(tensor, results[0][1][key], summed=10.0, what=key)


@pytest.mark.parametrize("tokens", [None, torch.tensor(0), 0])
def test_the_mean_over_no_token_is_zero(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path, tokens: Any
) -> None:
    """A step without a completion token changes no weight, however its tokens are counted."""
    recipe, student, dataset = labelled
    lm = load_language_model(prepare_untrained(recipe, student).path)
    rows = read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=100)
    trainer = StudentTrainer(lm, load_objective(student), training_arguments(recipe, student, tmp_path), rows, rows)
    loss = trainer.compute_loss(lm.model.train(), collator(lm.pad_id)([]), num_items_in_batch=tokens)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(one.grad is None or not one.grad.any() for one in lm.model.parameters())


def test_a_batch_that_no_dataset_fills_is_refused(labelled: tuple[Recipe, StudentSettings, Dataset]) -> None:
    """`dataloader_drop_last` would leave out every row."""
    recipe, student, dataset = labelled
    rows = dataset.manifest.rows["train"]
    train = {**student.train, "dataloader_drop_last": True, "per_device_train_batch_size": rows + 1}
    with pytest.raises(TrainingError, match=f"all {rows} rows do not fill one batch of {rows + 1}") as caught:
        distill(recipe, student.model_copy(update={"train": train}), dataset)
    assert f"per_device_train_batch_size to {rows} or less" in str(caught.value)
    whole = student.model_copy(update={"train": {**train, "per_device_train_batch_size": rows}})
    assert distill(recipe, whole, dataset).steps == 2


def test_what_a_card_says_of_held_out_rows_is_the_plain_sum_over_their_tokens(
    labelled: tuple[Recipe, StudentSettings, Dataset],
) -> None:
    """At temperature 1, whatever the loss's is: KL over the stored tokens and one outcome for all others."""
    recipe, student, dataset = labelled
    assert student.loss.temperature == 2.0
    card = distill(recipe, student, dataset)
    model = AutoModelForCausalLM.from_pretrained(Path(recipe.students) / recipe.name / "white-box").eval()
    kl = cross_entropy = 0.0
    tokens = 0
    for batch in dataset.batches("validation"):
        for index in range(batch.num_rows):
            trace = completion_at(batch, index).trace
            assert trace is not None and isinstance(trace.soft, SoftLabels)
            asked, written = trace.prompt_token_ids.tolist(), trace.completion_token_ids.tolist()
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([asked + written])).logits[0, len(asked) - 1 : -1]
            for place, q in enumerate(logits.double().softmax(-1).tolist()):
                listed = trace.soft.token_ids[place].tolist()
                teacher = [math.exp(value) for value in trace.soft.logprobs[place].tolist()]
                teacher.append(math.exp(float(trace.soft.tail_logprob[place])))
                learnt = [*(q[token] for token in listed), 1 - sum(q[token] for token in listed)]
                mass = sum(teacher)
                kl += sum(a / mass * math.log(a / mass / b) for a, b in zip(teacher, learnt, strict=True))
                cross_entropy -= math.log(q[written[place]])
                tokens += 1
    last = card.held_out
    assert last is not None and tokens > 20
    assert last.eval_kl == pytest.approx(kl / tokens, rel=1e-3)
    assert last.eval_cross_entropy == pytest.approx(cross_entropy / tokens, rel=1e-3)


def test_a_flipped_byte_is_refused_before_training(labelled: tuple[Recipe, StudentSettings, Dataset]) -> None:
    recipe, student, dataset = labelled
    file = dataset.folder / dataset.manifest.files[0].path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetRefused, match=f"{file.name} has sha256") as caught:
        distill(recipe, student, dataset)
    assert caught.value.exit_status == 1
    assert not Path(recipe.students).exists()


def test_a_dataset_of_another_tokenizer_is_refused(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    recipe, student, dataset = labelled
    other = make_tiny_model(tmp_path / "other", merges=2)
    foreign = student.model_copy(update={"init": student.init.model_validate({"model": str(other)})})
    with pytest.raises(DatasetRefused, match="was labelled with the tokenizer of"):
        distill(recipe, foreign, dataset)
    by_text = distill(recipe, foreign.model_copy(update={"mode": "black-box"}), dataset)
    assert by_text.steps > 0


def test_text_is_split_anew_for_a_student_of_another_tokenizer(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    _, _, dataset = labelled
    lm = load_language_model(make_tiny_model(tmp_path / "other", merges=3))
    taken, anew = (
        read_examples(dataset, "train", lm, soft=False, by_text=by_text, max_length=200) for by_text in (False, True)
    )
    assert [lm.tokenizer.decode(one.prompt) for one in taken] == [lm.tokenizer.decode(one.prompt) for one in anew]
    assert any(len(one.prompt) > len(other.prompt) for one, other in zip(taken, anew, strict=True))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (
            {"learning_rat": 1},
            "student.train.learning_rat: there is no such training argument. Did you mean 'learning_rate'",
        ),
        ({"output_dir": "x"}, "Stillhouse sets it"),
        ({"save_strategy": "sometimes"}, "student.train: transformers rejects the arguments"),
    ],
)
def test_wrong_training_arguments(
    labelled: tuple[Recipe, StudentSettings, Dataset], train: dict[str, Any], words: str
) -> None:
    recipe, student, dataset = labelled
    with pytest.raises(RecipeError) as caught:
        distill(recipe, student.model_copy(update={"train": train}), dataset)
    assert words in str(caught.value)


def test_rows_past_max_length_are_counted_and_none_left_is_an_error(
    labelled: tuple[Recipe, StudentSettings, Dataset],
) -> None:
    recipe, student, dataset = labelled
    with pytest.raises(TrainingError, match=r"longer than student\.max_length \(3\)"):
        distill(recipe, student.model_copy(update={"max_length": 3}), dataset)


def test_more_layers_than_the_teacher_has(labelled: tuple[Recipe, StudentSettings, Dataset]) -> None:
    recipe, student, dataset = labelled
    deep = student.model_copy(update={"init": student.init.model_validate({"from": "teacher", "layers": 9})})
    with pytest.raises(RecipeError, match="the teacher has only 4"):
        distill(recipe, deep, dataset)


def test_the_progress_counts_steps(labelled: tuple[Recipe, StudentSettings, Dataset]) -> None:
    recipe, student, dataset = labelled
    seen: list[tuple[str, int, int]] = []
    card = distill(recipe, student, dataset, lambda *step: seen.append(step))
    assert seen[-1] == ("Training the white-box student", card.steps, card.steps)


def test_a_changed_recipe_replaces_the_student_whole(labelled: tuple[Recipe, StudentSettings, Dataset]) -> None:
    recipe, student, dataset = labelled
    first = distill(recipe, student, dataset)
    second = distill(
        recipe, student.model_copy(update={"train": {**student.train, "learning_rate": 0.001}}), dataset, silent
    )
    assert first.key != second.key
    assert read_card(Path(recipe.students) / recipe.name / "white-box") == second
    shutil.rmtree(Path(recipe.students))


def test_text_only_rows_are_tokenised_by_the_student(tiny_recipe: MakeRecipe) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    text_only = {**parts["label"], "soft": None}
    recipe = tiny_recipe(label=text_only, student={**parts["student"], "mode": "black-box"})
    assert recipe.student is not None
    dataset = asyncio.run(label(recipe)).dataset
    lm = load_language_model(Path(recipe.teacher.model))
    rows = read_examples(dataset, "train", lm, soft=False, by_text=False, max_length=200)
    reasons = [one for batch in dataset.batches("train") for one in batch.column("finish_reason").to_pylist()]
    assert [row.completion[-1] == 0 for row in rows] == [reason == "stop" for reason in reasons]
    assert all(row.soft is None for row in rows)
    with pytest.raises(TrainingError, match="has no soft labels"):
        read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=200)
    assert distill(recipe, recipe.student, dataset).steps > 0


def test_another_live_teacher_makes_another_student(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    """The start and the rows are the same: what the labels come from is part of the key all the same."""
    recipe, student, dataset = labelled
    start = student.init.model_validate({"model": recipe.teacher.model})
    live = student.model_copy(update={"labels": "live", "init": start})
    other = recipe.teacher.model_copy(update={"model": str(make_tiny_model(tmp_path / "other", seed=5))})
    changed = recipe.model_copy(update={"teacher": other})
    one, two = (student_folder(of, live, "white-box", dataset).key for of in (recipe, changed))
    assert one != two
    one, two = (student_folder(of, live, "black-box", dataset).key for of in (recipe, changed))
    assert one == two  # which learns from the rows alone
    one, two = (
        student_folder(recipe, of, "black-box", dataset).key
        for of in (live, live.model_copy(update={"labels": "stored"}))
    )
    assert one == two
