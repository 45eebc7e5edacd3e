"""`teacher.finetune` of a recipe: the teacher is first fine-tuned on the references of the prompts, and then labels.

teacher:
  kind: transformers
  model: google-t5/t5-small                # where it starts
  finetune:
    train: {num_train_epochs: 3, learning_rate: 1.0e-3}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from stillhouse.recipe.student import (
    EarlyStoppingSettings,
    InitSettings,
    LaunchSettings,
    LoraSettings,
    Part,
    StudentSettings,
)
from stillhouse.settings import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # becomes a folder's name
_OF_A_STUDENT = ("max_length", "freeze", "packing", "lora", "early_stopping", "head_chunk", "train", "launch")


class FinetuneSettings(Settings):
    """How the teacher learns the task; every key that a student has too means the same here."""

    name: str | None = Field(default=None, pattern=NAME)  # of the fine-tuned teacher; None: the recipe's
    root: str = "data/teachers"  # it becomes <root>/<name>/gold
    seed: int | None = Field(default=None, ge=0)  # None: the recipe's
    config: dict[str, Any] | None = (
        None  # fresh weights by teacher.model's config with these changes; None: its weights
    )
    max_length: int = Field(default=1024, ge=2)  # tokens of prompt and reference; longer rows are counted and left out
    freeze: tuple[Part, ...] = ()
    packing: bool = False
    lora: LoraSettings | None = None
    early_stopping: EarlyStoppingSettings | None = None
    head_chunk: int = Field(default=512, ge=1)
    train: dict[str, Any] = Field(default_factory=dict)  # transformers.TrainingArguments, as they are named there
    launch: LaunchSettings | None = None  # of accelerate

    @property
    def folder(self) -> str:
        """Where the fine-tuned teacher lies."""
        return str(Path(self.root) / (self.name or "") / "gold")

    def as_student(self, model: str, revision: str | None, *, trust_remote_code: bool) -> StudentSettings:
        """What is trained, in the words of a student: `model` or its config is the start, the references are learnt."""
        init = (
            InitSettings(config=self.config)
            if self.config is not None
            else InitSettings(model=model, revision=revision)
        )
        same = {name: getattr(self, name) for name in _OF_A_STUDENT}
        return StudentSettings(init=init, mode="gold", trust_remote_code=trust_remote_code, **same)
