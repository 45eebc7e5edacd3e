"""`teacher.finetune` of a recipe: fine-tune the teacher on the prompts' references before it labels.

teacher:
  kind: transformers
  model: google-t5/t5-small                # the model to fine-tune
  finetune:
    train: {num_train_epochs: 3, learning_rate: 1.0e-3}

With `along: true` teacher and student learn in the same steps, as `student.train` says:

  finetune: {along: true, train: {learning_rate: 1.0e-4}}
student: {labels: live, train: {num_train_epochs: 3, learning_rate: 1.0e-3}, ...}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from stillhouse.recipe.dataset import NAME
from stillhouse.recipe.student import (
    EarlyStoppingSettings,
    LaunchSettings,
    LoraSettings,
    Part,
    StudentSettings,
    refuse_freeze_with_adapters,
)
from stillhouse.recipe.student_init import InitSettings
from stillhouse.settings import SettingError, Settings

_SHARED_WITH_STUDENT = ("max_length", "freeze", "packing", "lora", "early_stopping", "head_chunk", "train", "launch")


class FinetuneSettings(Settings):
    """How the teacher is fine-tuned; keys that `student` also has mean the same here."""

    name: str | None = Field(
        default=None, pattern=NAME, description="name of the fine-tuned teacher; None: the recipe's name"
    )
    root: str = Field(default="data/teachers", description="the fine-tuned teacher is stored in <root>/<name>/gold")
    seed: int | None = Field(default=None, ge=0, description="seed of the fine-tuning; None: the recipe's seed")
    config: dict[str, Any] | None = Field(
        default=None,
        description="changes to teacher.model's config, to train fresh weights; None: start from its weights",
    )
    max_length: int = Field(
        default=1024, ge=2, description="tokens of prompt and reference; longer rows are skipped and counted"
    )
    freeze: tuple[Part, ...] = Field(default=(), description="as `student.freeze`")
    packing: bool = Field(default=False, description="as `student.packing`")
    lora: LoraSettings | None = Field(default=None, description="as `student.lora`")
    early_stopping: EarlyStoppingSettings | None = Field(default=None, description="as `student.early_stopping`")
    head_chunk: int = Field(default=512, ge=1, description="as `student.head_chunk`")
    train: dict[str, Any] = Field(default_factory=dict, description="arguments of transformers.TrainingArguments")
    launch: LaunchSettings | None = Field(default=None, description="as `student.launch`")
    along: bool = Field(
        default=False,
        description="learn in the same steps as the student, which learns from the teacher as it is then; the arguments "
        "are `student.train`'s, but for this `train.learning_rate`",
    )
    student_weight: float = Field(
        default=0.0,
        ge=0,
        description="with `along`: weight in the teacher's loss of KL(student || teacher) at temperature 1, as in deep "
        "mutual learning (arXiv 1706.00384); 0: the teacher does not learn from the student",
    )

    @model_validator(mode="after")
    def _along_has_the_settings_of_the_student(self) -> FinetuneSettings:
        if not self.along:
            if self.student_weight:
                raise SettingError(
                    "the teacher is fine-tuned before there is a student that it could learn from",
                    setting="student_weight",
                    value=self.student_weight,
                    fix="set along to true, or remove student_weight",
                )
            return self
        fields = type(self).model_fields
        for name in sorted(set(_SHARED_WITH_STUDENT) - {"train"}):
            if getattr(self, name) != fields[name].default:
                raise SettingError(
                    f"along is true, so teacher and student share their steps, and student.{name} counts",
                    setting=name,
                    value=getattr(self, name),
                    fix=f"set student.{name}, and remove this",
                )
        for name in sorted(set(self.train) - {"learning_rate"}):
            raise SettingError(
                f"along is true, so teacher and student share their steps, and student.train.{name} counts",
                setting=f"train.{name}",
                value=self.train[name],
                fix=f"set student.train.{name}, and remove this; the teacher's own is learning_rate alone",
            )
        return self

    @model_validator(mode="after")
    def _freeze_or_adapters(self) -> FinetuneSettings:
        refuse_freeze_with_adapters(self.freeze, self.lora)
        return self

    @property
    def folder(self) -> str:
        """The folder of the fine-tuned teacher."""
        return str(Path(self.root) / (self.name or "") / "gold")

    def as_student(
        self, model: str, revision: str | None, *, beside: StudentSettings | None = None, trust_remote_code: bool
    ) -> StudentSettings:
        """Return the settings of a gold student that starts from `model`, or from its config with fresh weights.

        `beside` is the student in whose steps it learns; None: it has steps of its own.
        """
        init = (
            InitSettings(config=self.config)
            if self.config is not None
            else InitSettings(model=model, revision=revision)
        )
        same = {name: getattr(beside or self, name) for name in _SHARED_WITH_STUDENT}
        if beside is not None:
            same["train"] = {**beside.train, **self.train}
        return StudentSettings.for_teacher(init=init, mode="gold", trust_remote_code=trust_remote_code, **same)
