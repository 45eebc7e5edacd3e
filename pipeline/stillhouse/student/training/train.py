"""Train a student from a dataset with `transformers.Trainer`, whose arguments keep their names.

    distill(recipe, student, dataset)     ->  data/students/<recipe>/white-box/

After an interruption, a second run resumes from the last complete checkpoint and produces the student that an uninterrupted
run would have. Once the student is finished, a further run does nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import LanguageModel, load_language_model, load_weights
from stillhouse.processes.ranks import first_process_first, is_first, wait_for_all
from stillhouse.progress import Progress, silent
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.storage.durable import fsync_files, make_folder, write_atomically
from stillhouse.student.data.examples import Examples, read_examples
from stillhouse.student.data.template_checks import check_template_on_rows
from stillhouse.student.data.vocabulary import has_other_layout, has_other_tokenizer
from stillhouse.student.finished.card import reported_arguments, software_versions, write_cards
from stillhouse.student.finished.folder import (
    RECIPE,
    Step,
    StudentCard,
    StudentFolder,
    start_dataset,
    student_folder,
    weight_megabytes,
)
from stillhouse.student.finished.quantize import add_int8
from stillhouse.student.start.initialise import initialise, write_model
from stillhouse.student.start.record import read_start
from stillhouse.student.start.start_config import check_start
from stillhouse.student.training.arguments import check_drop_last, disable_evaluation, training_arguments
from stillhouse.student.training.forward import LiveTeacher
from stillhouse.student.training.frozen import freeze
from stillhouse.student.training.liger import disable_unsupported_liger, restore_patched_module
from stillhouse.student.training.lora import add_adapters, count_trainable, merge_adapters
from stillhouse.student.training.objective import Objective, load_objective
from stillhouse.student.training.packing import check_packing_of_models
from stillhouse.student.training.stopping import StopEarly
from stillhouse.student.training.trainer import COMPLETE_MARKER, ProgressCallback, StudentTrainer
from stillhouse.student.vocabulary_map import VocabularyMap, vocabulary_map_for


def prepare_untrained(
    recipe: Recipe, student: StudentSettings, labelled: Dataset | None = None, progress: Progress = silent
) -> StudentFolder:
    """Write the untrained student, if it does not exist yet.

    Args:
        recipe: the recipe, which names the teacher.
        student: the student's settings.
        labelled: the teacher's completions; None: the recipe's dataset, if the start needs one.
        progress: called with the activity, the items done and the total, while importance is measured.

    Raises:
        RecipeError: the settings of the start are wrong or do not fit the teacher.
        TeacherUnavailable: the model that the student starts from cannot be found.
        TrainingError: the student cannot be built as the recipe says.
        DatasetMissing: the start needs the teacher's completions, and they have not been labelled.
        DatasetRefused: the dataset that the start needs is damaged, or has another tokenizer.
        StudentBusy: another run is training this recipe's students.
    """
    labelled = start_dataset(recipe, student, labelled)
    folder = student_folder(recipe, student, "untrained", None, labelled)
    if folder.finished_card():
        return folder
    check_start(recipe, student)  # before anything is written, the lock included
    with folder.lock():
        return _prepare_untrained(recipe, student, labelled, progress)


def _prepare_untrained(
    recipe: Recipe, student: StudentSettings, labelled: Dataset | None, progress: Progress
) -> StudentFolder:
    """Do the work of `prepare_untrained`, with the folder's lock held."""
    folder = student_folder(recipe, student, "untrained", None, labelled)
    if folder.finished_card():
        return folder
    made = folder.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    make_folder(folder.work)
    initialise(recipe, student, made, labelled, progress)
    model = load_language_model(made, device="cpu", trust_remote_code=student.trust_remote_code).model
    _publish(recipe, folder, made, _card(recipe, folder, made, model))
    return folder


def distill(
    recipe: Recipe,
    student: StudentSettings,
    dataset: Dataset,
    progress: Progress = silent,
    *,
    open_teacher: Callable[[], LiveTeacher] | None = None,
    is_teacher: bool = False,
) -> StudentCard:
    """Train the student that `student` describes; `student.mode` names the variant. See the module's docstring.

    If several processes were started (ranks.py), all of them call this. `open_teacher` is needed for `labels: live` only.
    `is_teacher` records in the student's card that it will be a teacher (finetuning.py).

    Raises:
        RecipeError: a training argument or a loss option is wrong, or the student's chat template renders none of the rows.
        DatasetRefused: the dataset is damaged, or its tokenizer or token layout is not the student's.
        StudentBusy: another run is training this recipe's students, and nothing of theirs was changed.
        TrainingError: this student cannot learn from the rows, or the training has diverged.
    """
    labelled = start_dataset(recipe, student, None if student.mode == "gold" else dataset)
    folder = student_folder(recipe, student, student.mode, dataset, labelled)
    card = folder.finished_card()
    if card is not None:
        return card
    arguments = training_arguments(recipe, student, folder.work)
    objective = load_objective(student, encoding_of(dataset.manifest.soft) if student.needs_soft_labels else None)
    dataset.check()
    check_template_on_rows(recipe, student, dataset)
    with folder.lock():  # nothing is written before this
        if (card := folder.finished_card()) is not None:  # trained by another run in the meantime
            return card
        if (card := folder.trained_card()) is not None:  # complete except for its quantised copy
            return add_int8(folder, recipe, student, dataset) if is_first() else card
        work = _Work(recipe, student, dataset, labelled, folder, arguments, objective)
        return _train(work, progress, open_teacher, is_teacher=is_teacher)


@dataclass(frozen=True)
class _Work:
    """The checked inputs of a training."""

    recipe: Recipe
    student: StudentSettings
    dataset: Dataset
    labelled: Dataset | None
    folder: StudentFolder
    arguments: TrainingArguments
    objective: Objective


def _train(
    work: _Work, progress: Progress, open_teacher: Callable[[], LiveTeacher] | None, *, is_teacher: bool
) -> StudentCard:
    """Train the student with the folder's lock held; the arguments are those of `distill`."""
    recipe, student, dataset, folder, arguments = work.recipe, work.student, work.dataset, work.folder, work.arguments
    with first_process_first():
        start = _prepare_untrained(recipe, student, work.labelled, progress)
        if is_first():
            folder.resume_earlier_work()
        checkpoint = _last_complete_checkpoint(folder.work)
    files = ModelFiles("the student", start.path)
    other_tokens = has_other_tokenizer(dataset, files, refused=student.needs_soft_labels)
    vocabulary_map = vocabulary_map_for(files, dataset.manifest.teacher.tokenizer_sha256)
    lm = load_language_model(start.path, trust_remote_code=student.trust_remote_code)
    other_rows = has_other_layout(dataset, encoder_decoder=lm.is_encoder_decoder, refused=student.needs_soft_labels)
    rows = _rows(dataset, student, lm, vocabulary_map, by_text=other_tokens or other_rows)
    if len(rows.validation) == 0:
        disable_evaluation(arguments, student)
    check_drop_last(arguments, student, len(rows.train))
    disable_unsupported_liger(arguments, student, lm.model.config.model_type)
    trainer, learning = _trainer(student, lm, work.objective, arguments, rows, open_teacher() if open_teacher else None)
    doing = "Fine-tuning the teacher" if is_teacher else f"Training the {student.mode} student"
    trainer.add_callback(ProgressCallback(progress, doing))
    make_folder(folder.work)
    began = time.monotonic()
    with restore_patched_module(lm.model):
        trainer.train(resume_from_checkpoint=checkpoint)
    training = _Trained(dataset, time.monotonic() - began, trainer, rows.train, learning, is_teacher)
    weights = trainer.gather_weights()
    if is_first():
        _finish(recipe, student, folder, start.path, weights, training)
    wait_for_all()
    finished = folder.finished_card()
    if finished is None:
        raise TrainingError(
            f"the first process wrote {folder.path}, but this process cannot see it",
            fix="use a disk that all processes share",
        )
    return finished


@dataclass(frozen=True)
class _Rows:
    """The rows to learn from, and the held-out rows."""

    train: Examples
    validation: Examples


def _rows(
    dataset: Dataset,
    student: StudentSettings,
    lm: LanguageModel,
    vocabulary_map: VocabularyMap | None,
    *,
    by_text: bool,
) -> _Rows:
    rows = _Rows(
        *(
            read_examples(
                dataset,
                split,
                lm,
                soft=student.needs_soft_labels,
                by_text=by_text,
                max_length=student.max_length,
                vocabulary_map=vocabulary_map,
            )
            for split in ("train", "validation")
        )
    )
    if len(rows.train) == 0:
        raise TrainingError(
            f"dataset {dataset.manifest.label} has no row to learn from: {rows.train.too_long} are longer than "
            f"{student.setting('max_length')} ({student.max_length}), {rows.train.empty} have no completion token, "
            f"{rows.train.unrendered} have a prompt that the student's chat template refuses, "
            f"{sum(dataset.manifest.rejected.values())} were rejected"
        )
    return rows


def _trainer(
    student: StudentSettings,
    lm: LanguageModel,
    objective: Objective,
    arguments: TrainingArguments,
    rows: _Rows,
    teacher: LiveTeacher | None,
) -> tuple[StudentTrainer, int]:
    """Return the trainer of a student, and the number of its trainable parameters."""
    if student.packing:
        check_packing_of_models(student, lm, teacher)
    freeze(lm.model, student.freeze)
    adapted = None
    if student.lora:
        checkpointing = bool(arguments.activation_checkpointing)
        adapted = add_adapters(
            lm.model,
            student.lora,
            seed=arguments.seed,
            checkpointing=checkpointing,
            setting=student.setting("lora.target_modules"),
        )
    learning = count_trainable(lm.model)
    trainer = StudentTrainer(
        lm,
        objective,
        arguments,
        rows.train,
        rows.validation,
        head_chunk=student.head_chunk,
        teacher=teacher,
        pack_to=student.max_length if student.packing else None,
        adapted=adapted,
    )
    if student.early_stopping:
        stopping = student.early_stopping
        trainer.add_callback(StopEarly(stopping.patience, stopping.min_delta, student.setting("train.learning_rate")))
    return trainer, learning


def _finish(
    recipe: Recipe,
    student: StudentSettings,
    folder: StudentFolder,
    start: Path,
    weights: dict[str, Tensor],
    training: _Trained,
) -> None:
    """Write the trained student and move it to its final folder; called in the first process only."""
    made = folder.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    if student.lora:
        untrained = load_language_model(start, device="cpu", trust_remote_code=student.trust_remote_code)
        weights = merge_adapters(untrained, student.lora, weights, made / "adapter").model.state_dict()
    model = _save(weights, start, made, trusted=student.trust_remote_code)
    _publish(recipe, folder, made, _card(recipe, folder, made, model, training), training.dataset)
    if folder.wants_int8:
        add_int8(folder, recipe, student, training.dataset)


def _last_complete_checkpoint(work: Path) -> str | None:
    """Return the newest complete checkpoint; remove those that a crash left incomplete."""
    complete: dict[int, Path] = {}
    for checkpoint in work.glob("checkpoint-*"):
        if (checkpoint / COMPLETE_MARKER).is_file():
            complete[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(complete[max(complete)]) if complete else None


def _save(weights: dict[str, Tensor], start: Path, folder: Path, *, trusted: bool) -> PreTrainedModel:
    """Save the untrained student with these weights; its data type, its config and its tokenizer stay the same."""
    model = load_weights(start, dtype="auto", trust_remote_code=trusted)
    model.load_state_dict(weights)
    write_model(model, start, folder, trust_remote_code=trusted)
    if (made_of := read_start(start)) is not None:
        made_of.write(folder)
    return model


def _publish(
    recipe: Recipe, folder: StudentFolder, made: Path, card: StudentCard, dataset: Dataset | None = None
) -> None:
    write_cards(made, card, recipe, dataset.manifest if dataset else None)
    write_atomically(made / RECIPE, recipe.as_yaml().encode())
    fsync_files(made)
    folder.publish(made, card)


@dataclass(frozen=True)
class _Trained:
    """The results of a training that its card records."""

    dataset: Dataset
    seconds: float
    trainer: StudentTrainer
    rows: Examples
    learning: int  # trainable parameters
    is_teacher: bool


def _card(
    recipe: Recipe, folder: StudentFolder, made: Path, model: torch.nn.Module, training: _Trained | None = None
) -> StudentCard:
    trainer = training.trainer if training else None
    history = trainer.state.log_history if trainer else []
    measured = [entry for entry in history if {"loss", "eval_loss"} & entry.keys()]
    return StudentCard(
        recipe=recipe.name,
        variant=folder.variant,
        is_teacher=training is not None and training.is_teacher,
        key=folder.key,
        names_weights_by="content",
        dataset=training.dataset.manifest.label if training else "",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=training.learning if training else 0,
        megabytes=weight_megabytes(made),
        steps=trainer.state.global_step if trainer else 0,
        kept_step=trainer.state.best_global_step if trainer and trainer.args.load_best_model_at_end else None,
        training=reported_arguments(trainer.args) if trainer else {},
        rows=len(training.rows) if training else 0,
        rows_too_long=training.rows.too_long if training else 0,
        rows_empty=training.rows.empty if training else 0,
        rows_cut_off=training.rows.cut_off if training else 0,
        rows_unrendered=training.rows.unrendered if training else 0,
        seconds=round(training.seconds, 1) if training else 0.0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        log=tuple(
            Step.model_validate({key: entry[key] for key in Step.model_fields if key in entry}) for entry in measured
        ),
    )
