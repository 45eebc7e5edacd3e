"""`student.train` of a recipe as `transformers.TrainingArguments`, on top of Stillhouse's own defaults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pipeline.config import Recipe
from pipeline.errors import RecipeError
from pipeline.settings import nearest
from pipeline.student_settings import StudentSettings

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
