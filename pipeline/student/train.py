"""Train a student from a dataset, by `transformers.Trainer` with its arguments as they are named there.

    distill(recipe, "white-box")     ->  data/students/<recipe>/white-box/

Run again after any stop it goes on from the last whole checkpoint, and ends with the student that an unbroken run would
have given. Run again after the end it does nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import pipeline
from pipeline.causal import CausalModel, completion_logits, load_causal_model
from pipeline.config import Recipe, StudentSettings, encoding_of
from pipeline.dataset.store import Dataset
from pipeline.durable import fsync_folder, write_atomically
from pipeline.errors import DatasetRefused, RecipeError, TrainingError
from pipeline.model_files import ModelFiles
from pipeline.progress import Progress, silent
from pipeline.settings import nearest
from pipeline.student.batches import Batch, collator, soft_labels_of, tokens_of
from pipeline.student.examples import Examples, read_examples
from pipeline.student.folder import Step, StudentCard, StudentFolder, student_folder
from pipeline.student.initialise import initialise
from pipeline.student.objective import Objective, open_objective
from pipeline.student.order import LengthGroups, Shuffled

_WHOLE = "whole"  # marks a checkpoint whose every file is on the disk
_OURS = ("output_dir", "resume_from_checkpoint", "remove_unused_columns", "label_names", "disable_tqdm")
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 5e-5,
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "eval_strategy": "epoch",
    "report_to": "none",
}


def prepare_untrained(recipe: Recipe, student: StudentSettings) -> StudentFolder:
    """Write the student before its first step, where it is not there yet.

    Raises:
        RecipeError, TeacherUnavailable, TrainingError: as `initialise` does.
    """
    place = student_folder(recipe, student, "untrained", None)
    if place.finished():
        return place
    made = place.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    initialise(recipe, student.init, made)
    model = load_causal_model(made, device="cpu").model
    _publish(place, made, _card(recipe, place, model, dataset="", seconds=0.0))
    return place


def distill(recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent) -> StudentCard:
    """Train the student that `student` describes; `student.mode` names the variant. See the module's docstring.

    Raises:
        RecipeError: a training argument is unknown or wrong.
        DatasetRefused: the dataset is damaged, or of another tokenizer.
        TrainingError: the rows cannot be learnt from by this student.
    """
    place = student_folder(recipe, student, student.mode, dataset)
    card = place.finished()
    if card is not None:
        return card
    arguments = training_arguments(recipe, student, place.work)
    objective = open_objective(student, encoding_of(dataset.manifest.soft))
    dataset.check()
    start = prepare_untrained(recipe, student)
    white_box = student.mode == "white-box"
    other_tokens = _other_tokenizer(dataset, ModelFiles("the student", start.path), refused=white_box)
    causal = load_causal_model(start.path)
    train_rows, validation_rows = (
        read_examples(dataset, split, causal, soft=white_box, by_text=other_tokens, max_length=student.max_length)
        for split in ("train", "validation")
    )
    if len(train_rows) == 0:
        raise TrainingError(
            f"dataset {dataset.manifest.label} leaves no row to learn from: {train_rows.too_long} are longer than "
            f"student.max_length={student.max_length}, {sum(dataset.manifest.rejected.values())} were rejected"
        )
    if len(validation_rows) == 0:
        arguments.eval_strategy = transformers.IntervalStrategy.NO
    trainer = StudentTrainer(causal, objective, arguments, train_rows, validation_rows)
    trainer.add_callback(_Watch(progress, f"Training the {student.mode} student"))
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(place.work))
    seconds = time.monotonic() - began
    made = place.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    _save(causal, start.path, made)
    card = _card(recipe, place, causal.model, dataset.manifest.label, seconds, trainer, train_rows)
    _publish(place, made, card)
    return card


def training_arguments(recipe: Recipe, student: StudentSettings, folder: Path) -> TrainingArguments:
    """`student.train` as transformers.TrainingArguments, on top of Stillhouse's defaults (`_DEFAULTS`).

    Raises:
        RecipeError: an argument is unknown, wrong, or not the recipe's to set.
    """
    known = {field.name for field in fields(TrainingArguments)} - set(_OURS)
    for name in student.train:
        if name not in known:
            hint = " Stillhouse sets it itself." if name in _OURS else nearest(name, sorted(known))
            raise RecipeError(f"student.train.{name}: there is no such training argument to set.{hint}")
    settings = {
        "dataloader_pin_memory": torch.accelerator.is_available(),
        **_DEFAULTS,
        "seed": recipe.seed,
        **student.train,
    }
    try:
        return TrainingArguments(
            output_dir=str(folder), remove_unused_columns=False, label_names=["labels"], disable_tqdm=True, **settings
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(f"student.train is wrong: {error}") from None


class StudentTrainer(Trainer):
    """`transformers.Trainer` with the objective in the place of the model's own loss.

    The loss of an optimiser step is a mean over all its completion tokens, however they are spread over micro-batches,
    gradient accumulation and processes.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole step

    def __init__(
        self,
        causal: CausalModel,
        objective: Objective,
        arguments: TrainingArguments,
        train: Examples,
        validation: Examples,
    ) -> None:
        super().__init__(
            model=causal.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            data_collator=collator(causal.pad_id),
        )
        self.remove_callback(PrinterCallback)  # it prints dictionaries to standard output
        self._objective = objective
        self._train_rows = train
        self.model_accepts_loss_kwargs = True  # makes the trainer count the tokens of a step

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> Any:
        """The library's own samplers know nothing of row groups, nor of the epoch after a resume."""
        rows = train_dataset or self._train_rows
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.args.train_sampling_strategy == "random":
            sampler = Shuffled(rows, seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            sampler = LengthGroups(rows, self.args.train_batch_size * self.args.gradient_accumulation_steps, seed)
        else:
            return super()._get_train_sampler(train_dataset)
        self.add_callback(_TellEpoch(sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset: Examples) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return LengthGroups(eval_dataset, self.args.eval_batch_size, seed=0)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The objective's mean over the completion tokens of the optimiser step: scalar."""
        tokens = tokens_of(inputs)
        targets = tokens.targets
        total = self._objective(completion_logits(model, tokens), targets, soft_labels_of(inputs))
        if num_items_in_batch is None:
            loss = total / targets.numel()
        else:  # gradients are averaged over processes, the count is of all of them
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = total / num_items_in_batch * processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of one evaluation batch, a mean over its completion tokens."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


class _TellEpoch(TrainerCallback):
    """Tells a sampler the epoch: of several processes that go on within one, accelerate tells only the outer samplers."""

    def __init__(self, sampler: Shuffled) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


class _Watch(TrainerCallback):
    """Tells how far the training is, and marks checkpoints that are whole."""

    def __init__(self, progress: Progress, activity: str) -> None:
        self._progress = progress
        self._activity = activity

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress(self._activity, state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            _to_disk(checkpoint)
            write_atomically(checkpoint / _WHOLE, b"")


def _last_whole_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end; one that a crash cut short is removed."""
    whole: dict[int, Path] = {}
    for checkpoint in work.glob("checkpoint-*"):
        if (checkpoint / _WHOLE).is_file():
            whole[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(whole[max(whole)]) if whole else None


def _save(causal: CausalModel, start: Path, folder: Path) -> None:
    """Model and tokenizer, in the data type that the untrained student has on disk."""
    stored = transformers.AutoConfig.from_pretrained(start).dtype
    causal.model.to(stored if isinstance(stored, torch.dtype) else torch.float32).save_pretrained(folder)
    causal.tokenizer.save_pretrained(folder)


def _publish(place: StudentFolder, made: Path, card: StudentCard) -> None:
    _to_disk(made)
    place.publish(made, card)


def _to_disk(folder: Path) -> None:
    """fsync every file of a folder, and the folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    fsync_folder(folder)


def _card(
    recipe: Recipe,
    place: StudentFolder,
    model: torch.nn.Module,
    dataset: str,
    seconds: float,
    trainer: StudentTrainer | None = None,
    rows: Examples | None = None,
) -> StudentCard:
    history = trainer.state.log_history if trainer else []
    measured = [entry for entry in history if {"loss", "eval_loss"} & entry.keys()]
    return StudentCard(
        recipe=recipe.name,
        variant=place.variant,
        key=place.key,
        dataset=dataset,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=trainer.state.global_step if trainer else 0,
        rows=len(rows) if rows else 0,
        rows_too_long=rows.too_long if rows else 0,
        seconds=round(seconds, 1),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        log=tuple(
            Step.model_validate({key: entry[key] for key in Step.model_fields if key in entry}) for entry in measured
        ),
    )


def software_versions() -> dict[str, str]:
    """What a figure or a model depends on."""
    return {
        "stillhouse": pipeline.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _other_tokenizer(dataset: Dataset, student: ModelFiles, *, refused: bool) -> bool:
    """Whether the student numbers its tokens otherwise than the dataset's teacher does.

    Raises:
        DatasetRefused: it does, and that is `refused`: soft labels by token id would mean nothing to it.
    """
    teacher = dataset.manifest.teacher
    if teacher.tokenizer_sha256 is None or teacher.tokenizer_sha256 == student.tokenizer_sha256:
        return False
    if refused:
        raise DatasetRefused(
            f"dataset {dataset.manifest.label} was labelled with the tokenizer of {teacher.model} "
            f"(sha256 {teacher.tokenizer_sha256[:12]}…), and the student has another "
            f"(sha256 {student.tokenizer_sha256[:12]}…): choose a student.init with the teacher's tokenizer, or set "
            "student.mode to 'black-box', which learns from the text"
        )
    return True
