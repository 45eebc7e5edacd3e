"""The `student` part of a recipe: the student's initial weights, its loss and its training.

student:
  init:   {from: teacher, layers: 16}
  loss:   {kind: forward-kl, temperature: 2.0, weight: 1.0, cross_entropy_weight: 0.1}
  train:  {num_train_epochs: 3, learning_rate: 1.0e-3, bf16: true}
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from stillhouse.recipe.dataset import NAME
from stillhouse.recipe.student_init import InitSettings
from stillhouse.settings import SettingError, Settings

Part = Literal["embedding", "head"]


class LossSettings(Settings):
    """The loss: weight * T^2 * divergence(teacher / T, student / T) + cross_entropy_weight * CE(completion, student).

    All other keys are options of the kind, which checks them: {kind: skewed-kl, alpha: 0.1}.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str = Field(default="forward-kl", description="the divergence; docs/distillation.md lists them")
    temperature: float = Field(default=1.0, gt=0, description="temperature of teacher and student in the divergence")
    weight: float = Field(default=1.0, ge=0, description="weight of the divergence; 0: cross-entropy only")
    cross_entropy_weight: float = Field(
        default=1.0, ge=0, description="weight of the cross-entropy on the completion's tokens; 0: divergence only"
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _a_weight_is_positive(self) -> LossSettings:
        if self.weight == 0 and self.cross_entropy_weight == 0:
            raise SettingError(
                "cross_entropy_weight is 0 too, so nothing would be learnt",
                setting="weight",
                value=self.weight,
                fix="set one of the two above 0",
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685), by peft; they are merged into the finished student."""

    r: int = Field(default=16, ge=1, description="rank of the adapters")
    alpha: float = Field(default=32, gt=0, description="scale of the adapters")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout probability of the adapters")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="as in peft; the default is every linear layer but the head"
    )


class EarlyStoppingSettings(Settings):
    """Stop training when the held-out divergence no longer falls, and keep the best student."""

    patience: int = Field(default=3, ge=1, description="evaluations without an improvement before training stops")
    min_delta: float = Field(default=0.0, ge=0, description="minimum improvement that counts, in nats per token")


class DataSettings(Settings):
    """A dataset whose training rows the student learns from; held-out rows are those of the recipe's dataset."""

    dataset: str = Field(pattern=NAME, description="its name in dataset.root")
    version: int | None = Field(default=None, ge=1, description="its version; None: the newest")
    rows: int | None = Field(default=None, ge=1, description="number of rows drawn at random; None: all")


def refuse_freeze_with_adapters(freeze: tuple[Part, ...], lora: LoraSettings | None) -> None:
    """Refuse `freeze` next to `lora`, in `student` and in `teacher.finetune`.

    Raises:
        SettingError: both are set.
    """
    if freeze and lora is not None:
        raise SettingError(
            "lora is set, and adapters leave all of the model's other weights unchanged",
            setting="freeze",
            value=[*freeze],
            fix="remove freeze",
        )


class LaunchSettings(Settings):
    """Start the training processes with `accelerate launch`; options of the same name mean the same."""

    num_processes: int | None = Field(
        default=None, ge=1, description="number of processes; None: as in the config file, or one per GPU"
    )
    config_file: str | None = Field(
        default=None, description="file that `accelerate config` wrote; None: its default file, if that exists"
    )
    arguments: tuple[str | int, ...] = Field(default=(), description="further arguments of `accelerate launch`")


_TEACHER_PATHS = {  # settings of a teacher that is fine-tuned, by their names in `student`
    "init": "teacher.model",
    "init.model": "teacher.model",
    "init.config": "teacher.finetune.config",
    "trust_remote_code": "teacher.options.trust_remote_code",
}


class StudentSettings(Settings):
    """The student and its training."""

    _is_teacher: bool = PrivateAttr(default=False)  # made of `teacher.finetune`

    init: InitSettings = Field(description="what the student starts from")
    data: tuple[DataSettings, ...] | None = Field(
        default=None, description="datasets whose training rows are learnt; None: the recipe's"
    )
    mode: Literal["white-box", "black-box", "gold"] = Field(
        default="white-box",
        description="white-box: learns soft labels; black-box: the teacher's text; gold: references",
    )
    labels: Literal["stored", "live"] = Field(
        default="stored",
        description="stored: soft labels of the dataset; live: the teacher's forward pass in every step",
    )
    loss: LossSettings = Field(default=LossSettings(), description="the loss of a white-box student")
    max_length: int = Field(
        default=1024, ge=2, description="tokens of prompt and completion; longer rows are skipped and counted"
    )
    freeze: tuple[Part, ...] = Field(
        default=(), description="parts that are not trained; with tied weights, either one freezes both"
    )
    packing: bool = Field(
        default=False, description="pack rows up to max_length tokens, without attention between them"
    )
    lora: LoraSettings | None = Field(
        default=None, description="train low-rank adapters instead of the weights; None: all weights are trained"
    )
    early_stopping: EarlyStoppingSettings | None = Field(
        default=None, description="end the training when held-out rows no longer improve; None: train to the last step"
    )
    head_chunk: int = Field(default=512, ge=1, description="positions whose logits are in memory at once")
    quantize: Literal["int8"] | None = Field(
        default=None, description="also write a quantised copy of the student; None: no copy"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with a model; only for models whose code you have read"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="arguments of transformers.TrainingArguments")
    launch: LaunchSettings | None = Field(
        default=None, description="train with `accelerate launch`, in several processes; None: in this process"
    )

    @model_validator(mode="after")
    def _live_teacher_has_the_whole_vocabulary(self) -> StudentSettings:
        if self.needs_live_teacher and self.init.vocabulary == "used":
            raise SettingError(
                "init.vocabulary is 'used', and a live teacher reads its own token ids, of which the student has only some",
                setting="labels",
                value=self.labels,
                fix="set labels to stored, or init.vocabulary to all",
            )
        return self

    @model_validator(mode="after")
    def _minillm_learns_from_text_of_the_student(self) -> StudentSettings:
        if self.loss.kind == "minillm" and self.data is None:
            raise SettingError(
                "this loss learns from what a student wrote, and the recipe's dataset has the teacher's answers",
                setting="loss.kind",
                value=self.loss.kind,
                fix="set on_policy.loss.kind to minillm and loss.kind to reverse-kl, or name scored rollouts in data",
            )
        return self

    @model_validator(mode="after")
    def _freeze_or_adapters(self) -> StudentSettings:
        refuse_freeze_with_adapters(self.freeze, self.lora)
        return self

    @classmethod
    def for_teacher(cls, **settings: Any) -> StudentSettings:
        """Return the settings of a teacher that is fine-tuned: errors name their paths in `teacher.finetune`."""
        made = cls(**settings)
        made._is_teacher = True
        return made

    @property
    def needs_soft_labels(self) -> bool:
        """Whether training needs soft labels in the dataset."""
        return self.mode == "white-box" and self.labels == "stored"

    @property
    def needs_live_teacher(self) -> bool:
        """Whether training runs the teacher model."""
        return self.mode == "white-box" and self.labels == "live"

    def setting(self, name: str) -> str:
        """Return the path in the recipe of one of these settings, for errors.

        `packing` is `student.packing`; of a teacher that is fine-tuned, `teacher.finetune.packing`.
        """
        if not self._is_teacher:
            return f"student.{name}"
        return _TEACHER_PATHS.get(name, f"teacher.finetune.{name}")

    def key_settings(self, mode: str) -> dict[str, Any]:
        """Return the settings that determine a student's weights if trained in `mode`: equal for equal students."""
        unused = {"quantize", "launch"} | ({"loss", "labels"} if mode != "white-box" else set())
        return self.model_dump(exclude=unused) | {"mode": mode, "init": self.init.key_settings}
