"""Train a student from a dataset with `transformers.Trainer`, whose arguments keep their names.

    distill(recipe, student, dataset)     ->  data/students/<recipe>/white-box/

After an interruption, a second run resumes from the last complete checkpoint and produces the student that an uninterrupted
run would have. Once the student is finished, a further run does nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import TrainingArguments

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.processes.ranks import first_process_first, is_first, wait_for_all
from stillhouse.progress import Progress, silent
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.storage.durable import make_folder
from stillhouse.student.data.examples import Examples, open_rows
from stillhouse.student.data.rows import Rows
from stillhouse.student.data.several import DrawnRows, JoinedRows
from stillhouse.student.data.template_checks import check_template_on_rows
from stillhouse.student.data.vocabulary import has_other_layout, has_other_tokenizer
from stillhouse.student.finished.folder import (
    StudentCard,
    StudentFolder,
    datasets_of,
    start_dataset,
    student_folder,
    teacher_along,
)
from stillhouse.student.finished.quantize import add_int8
from stillhouse.student.training.along import TeacherAlong, teachers_log
from stillhouse.student.training.arguments import check_drop_last, disable_evaluation, training_arguments
from stillhouse.student.training.forward import LiveTeacher
from stillhouse.student.training.frozen import freeze
from stillhouse.student.training.liger import disable_unsupported_liger, restore_patched_module
from stillhouse.student.training.lora import add_adapters, count_trainable, merge_adapters
from stillhouse.student.training.objective import Objective, load_objective
from stillhouse.student.training.packing import check_packing_of_models
from stillhouse.student.training.stopping import StopDiverged, StopEarly
from stillhouse.student.training.trainer import COMPLETE_MARKER, ProgressCallback, StudentTrainer
from stillhouse.student.training.untrained import write_untrained
from stillhouse.student.training.write_student import Trained, publish, save_trained, student_card
from stillhouse.student.training.written_rows import WrittenRows, was_written_by_student
from stillhouse.student.vocabulary_map import VocabularyMap, vocabulary_map_for


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
    `is_teacher` records in student.json that the model will label as a teacher (stages/finetune.py).
    With `teacher.finetune.along`, the white-box student's training makes the teacher too, and `dataset` has the references.

    Raises:
        RecipeError: a training argument or a loss option is wrong, or the student's chat template renders none of the rows.
        DatasetRefused: the dataset is damaged, or its tokenizer or token layout is not the student's.
        StudentBusy: another run is training this recipe's students, and nothing of theirs was changed.
        TrainingError: this student cannot learn from the rows, or the training has diverged.
    """
    labelled = start_dataset(recipe, student, None if recipe.learns_references(student.mode) else dataset)
    folder = student_folder(recipe, student, student.mode, dataset, labelled)
    along = _along_of(recipe, student, dataset)
    card = _finished(folder, along)
    if card is not None:
        return card
    arguments = training_arguments(recipe, student, folder.work)
    objective = load_objective(student, encoding_of(dataset.manifest.soft) if student.needs_soft_labels else None)
    for one in {
        dataset.folder: dataset,
        **{one.folder: one for _, one in datasets_of(recipe, student, dataset)},
    }.values():
        one.check()
    check_template_on_rows(recipe, student, dataset)
    if objective.minillm is not None:
        _check_written(recipe, student, dataset)
    with folder.lock(), along.folder.lock() if along else nullcontext():  # nothing is written before this
        if (card := _finished(folder, along)) is not None:  # trained by another run in the meantime
            return card
        if (
            _has_teacher(along) and (card := folder.trained_card()) is not None
        ):  # complete except for its quantised copy
            return add_int8(folder, recipe, student, dataset) if is_first() else card
        work = _Work(recipe, student, dataset, labelled, folder, arguments, objective, along)
        return _train(work, progress, open_teacher, is_teacher=is_teacher)


def _check_written(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> None:
    """Refuse `minillm` for a student that learns from no rollouts."""
    learnt = [one for _, one in datasets_of(recipe, student, dataset)]
    if not any(was_written_by_student(one) for one in learnt):
        raise RecipeError(
            "this loss learns from scored rollouts, and no student wrote the rows of "
            + " and ".join(one.manifest.label for one in learnt),
            setting=student.setting("loss.kind"),
            value=student.loss.kind,
            fix=f"name a dataset of rollouts in {student.setting('data')}, or set this to reverse-kl",
        )


@dataclass(frozen=True)
class _Along:
    """The fine-tuning of a teacher in the steps of the student."""

    recipe: Recipe
    student: StudentSettings  # that becomes the teacher
    folder: StudentFolder


def _along_of(recipe: Recipe, student: StudentSettings, references: Dataset) -> _Along | None:
    """Return the fine-tuning that a student's training does as well; None for any other student."""
    folder, tuning = teacher_along(recipe, student, references), recipe.finetuning
    return _Along(tuning, tuning.student, folder) if folder and tuning and tuning.student else None


def _has_teacher(along: _Along | None) -> bool:
    """Whether the teacher that is trained in the student's steps is there, if there is one."""
    return along is None or along.folder.finished_card() is not None


def _finished(folder: StudentFolder, along: _Along | None) -> StudentCard | None:
    """Return the student's card if nothing is left to do."""
    return folder.finished_card() if _has_teacher(along) else None


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
    along: _Along | None  # the teacher that is trained in the same steps


def _train(
    work: _Work, progress: Progress, open_teacher: Callable[[], LiveTeacher] | None, *, is_teacher: bool
) -> StudentCard:
    """Train the student with the folder's lock held; the arguments are those of `distill`."""
    recipe, student, dataset, folder, arguments = work.recipe, work.student, work.dataset, work.folder, work.arguments
    with first_process_first():
        start = write_untrained(recipe, student, work.labelled, progress)
        teachers = work.along and write_untrained(work.along.recipe, work.along.student, None, progress)
        if is_first():
            folder.resume_earlier_work()
        checkpoint = _last_complete_checkpoint(folder.work)
    files = ModelFiles("the student", start.path)
    other_tokens = has_other_tokenizer(dataset, files, raise_if_other=student.needs_soft_labels)
    vocabulary_map = vocabulary_map_for(files, dataset.manifest.teacher.tokenizer_sha256)
    lm = load_language_model(start.path, trust_remote_code=student.trust_remote_code)
    along = _load_along(recipe, teachers.path) if teachers else None
    other_rows = has_other_layout(
        dataset, encoder_decoder=lm.is_encoder_decoder, raise_if_other=student.needs_soft_labels
    )
    rows = _rows(work, lm, vocabulary_map, by_text=other_tokens or other_rows)
    if len(rows.validation) == 0:
        disable_evaluation(arguments, student)
    check_drop_last(arguments, student, len(rows.train))
    disable_unsupported_liger(arguments, student, lm.model.config.model_type)
    live = open_teacher() if open_teacher and not along else None
    trainer, learning = _trainer(student, lm, work.objective, arguments, rows, live, along)
    doing = "Fine-tuning the teacher" if is_teacher else f"Training the {student.mode} student"
    doing = "Training teacher and student" if along else doing
    trainer.add_callback(ProgressCallback(progress, doing))
    make_folder(folder.work)
    began = time.monotonic()
    with restore_patched_module(lm.model):
        trainer.train(resume_from_checkpoint=checkpoint)
    log = trainer.state.log_history
    training = Trained(dataset, time.monotonic() - began, trainer, log, rows.train, learning, is_teacher)
    weights = trainer.gather_weights()
    if is_first():
        if work.along and along and teachers:
            of_teacher = replace(
                training, log=teachers_log(log), learning=count_trainable(along.model), is_teacher=True
            )
            made = work.along
            _finish(made.recipe, made.student, made.folder, teachers.path, along.model.state_dict(), of_teacher)
        _finish(recipe, student, folder, start.path, weights, training)
    wait_for_all()
    return _card_of_first(folder)


def _card_of_first(folder: StudentFolder) -> StudentCard:
    """Return the card that the first process wrote."""
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


def _rows(work: _Work, lm: LanguageModel, vocabulary_map: VocabularyMap | None, *, by_text: bool) -> _Rows:
    dataset, student, options = work.dataset, work.student, work.objective.minillm
    read = partial(open_rows, lm=lm, soft=student.needs_soft_labels, by_text=by_text, vocabulary_map=vocabulary_map)
    sources: list[Rows] = []
    for number, (settings, one) in enumerate(datasets_of(work.recipe, student, dataset)):
        found: Rows = read(one, "train")
        if options is not None and was_written_by_student(one):
            chunk, longest = student.head_chunk, student.max_length
            found = WrittenRows(found, one, lm, options, head_chunk=chunk, max_length=longest)
        sources.append(found if settings.rows is None else DrawnRows(found, settings.rows, [work.recipe.seed, number]))
    train = sources[0] if len(sources) == 1 else JoinedRows(sources)
    rows = _Rows(*(Examples(one, student.max_length) for one in (train, read(dataset, "validation"))))
    if len(rows.train) == 0:
        raise TrainingError(
            f"dataset {dataset.manifest.label} has no row to train on: {rows.train.too_long} are longer than "
            f"{student.setting('max_length')} ({student.max_length}), {rows.train.empty} have no completion token, "
            f"{rows.train.unrendered} have a prompt that the student's chat template refuses, "
            f"{sum(dataset.manifest.rejected.values())} were rejected",
            fix=f"raise {student.setting('max_length')}, or check the chat template and the filters",
        )
    return rows


def _trainer(
    student: StudentSettings,
    lm: LanguageModel,
    objective: Objective,
    arguments: TrainingArguments,
    rows: _Rows,
    teacher: LiveTeacher | None,
    along: TeacherAlong | None,
) -> tuple[StudentTrainer, int]:
    """Return the trainer of a student, and the number of its trainable parameters."""
    if student.packing:
        check_packing_of_models(student, lm, along.model if along else teacher)
    freeze(lm.model, student.freeze)
    if along:
        freeze(along.model, student.freeze)
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
        along=along,
    )
    learning_rate_setting = student.setting("train.learning_rate")
    trainer.add_callback(StopDiverged(lambda: trainer.last_loss, learning_rate_setting))
    if student.early_stopping:
        stopping = student.early_stopping
        trainer.add_callback(StopEarly(stopping.patience, stopping.min_delta, learning_rate_setting))
    return trainer, learning


def _load_along(recipe: Recipe, start: Path) -> TeacherAlong:
    """Load the teacher that learns along, as it is before the first step."""
    settings = recipe.teacher.finetune
    assert settings is not None
    lm = load_language_model(start, trust_remote_code=recipe.teacher.options.get("trust_remote_code") is True)
    return TeacherAlong(lm.model, settings.student_weight, settings.train.get("learning_rate"))


def _last_complete_checkpoint(work: Path) -> str | None:
    """Return the newest complete checkpoint; remove those that a crash left incomplete."""
    complete: dict[int, Path] = {}
    for checkpoint in work.glob("checkpoint-*"):
        if (checkpoint / COMPLETE_MARKER).is_file():
            complete[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(complete[max(complete)]) if complete else None


def _finish(
    recipe: Recipe,
    student: StudentSettings,
    folder: StudentFolder,
    start: Path,
    weights: dict[str, Tensor],
    training: Trained,
) -> None:
    """Write the trained student and move it to its final folder; called in the first process only."""
    made = folder.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    if student.lora:
        untrained = load_language_model(start, device="cpu", trust_remote_code=student.trust_remote_code)
        weights = merge_adapters(untrained, student.lora, weights, made / "adapter").model.state_dict()
    model = save_trained(weights, start, made, trusted=student.trust_remote_code)
    publish(recipe, folder, made, student_card(recipe, folder, made, model, training), training.dataset)
    if folder.wants_int8:
        add_int8(folder, recipe, student, training.dataset)
