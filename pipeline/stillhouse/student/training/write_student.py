"""Write a student, trained or not: its weights, its card, and last its final folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.dataset.store import Dataset
from stillhouse.models.load import load_weights
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import RECIPE_FILE, utc_now
from stillhouse.storage.durable import fsync_files, write_atomically
from stillhouse.student.data.examples import Examples
from stillhouse.student.finished.card import reported_arguments, software_versions, write_cards
from stillhouse.student.finished.folder import Step, StudentCard, StudentFolder, weight_megabytes
from stillhouse.student.start.initialise import write_model
from stillhouse.student.start.record import read_start
from stillhouse.student.training.trainer import StudentTrainer


@dataclass(frozen=True)
class Trained:
    """The results of a training that its card records."""

    dataset: Dataset
    seconds: float
    trainer: StudentTrainer
    log: Sequence[Mapping[str, Any]]  # what was measured at its steps, as `TrainerState.log_history`
    rows: Examples
    learning: int  # trainable parameters
    is_teacher: bool


def save_trained(weights: dict[str, Tensor], start: Path, folder: Path, *, trusted: bool) -> PreTrainedModel:
    """Save the untrained student with these weights; its data type, its config and its tokenizer stay the same."""
    model = load_weights(start, dtype="auto", trust_remote_code=trusted)
    model.load_state_dict(weights)
    write_model(model, start, folder, trust_remote_code=trusted)
    if (made_of := read_start(start)) is not None:
        made_of.write(folder)
    return model


def student_card(
    recipe: Recipe, folder: StudentFolder, made: Path, model: torch.nn.Module, training: Trained | None = None
) -> StudentCard:
    """Return the card of a student whose weights are in `made`; without `training` it is the untrained one."""
    trainer = training.trainer if training else None
    history = training.log if training else []
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
        created_at=utc_now(),
        versions=software_versions(),
        log=tuple(
            Step.model_validate({key: entry[key] for key in Step.model_fields if key in entry}) for entry in measured
        ),
    )


def publish(
    recipe: Recipe, folder: StudentFolder, made: Path, card: StudentCard, dataset: Dataset | None = None
) -> None:
    """Write the cards and the recipe next to a student's weights in `made`, and move it to its final folder."""
    write_cards(made, card, recipe, dataset.manifest if dataset else None)
    write_atomically(made / RECIPE_FILE, recipe.as_yaml().encode())
    fsync_files(made)
    folder.publish(made, card)
