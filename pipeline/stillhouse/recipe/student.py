"""The `student` part of a recipe: the student's initial weights, its loss and its training.

student:
  init:   {from: teacher, layers: 16}
  loss:   {kind: forward-kl, temperature: 2.0, weight: 1.0, cross_entropy_weight: 0.1}
  train:  {num_train_epochs: 3, learning_rate: 1.0e-3, bf16: true}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from stillhouse.settings import SettingError, Settings

Part = Literal["embedding", "head"]
Layers = int | tuple[int, ...]  # a number of layers, chosen by `choose`; or a list of layers, from 0
Width = int | float  # a number; or a share of the teacher's, such as 0.5 (1.0: all)
_WIDTH_FIX = "give a whole number from 1 up, or a share of the teacher's width between 0 and 1 such as 0.5"
Choose = Literal["importance", "greedy", "leave-one-out", "block-influence", "even"]


class StackLayers(Settings):
    """Layers to keep of an encoder-decoder's two stacks; None: all."""

    encoder: Layers | None = Field(default=None, description="encoder layers to keep; None: all")
    decoder: Layers | None = Field(default=None, description="decoder layers to keep; None: all")


class WidthSettings(Settings):
    """Widths to keep of the teacher's matrices, the same in every layer; None: the full width."""

    feed_forward: Width | None = Field(default=None, description="neurons between the two feed-forward matrices")
    heads: Width | None = Field(
        default=None, description="attention heads, in whole groups that share a key-value head"
    )
    hidden: Width | None = Field(
        default=None, description="channels of the residual stream, embedding and norms included"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_number(cls, given: Any) -> Any:
        if given is not None and (isinstance(given, bool) or not isinstance(given, int | float)):
            raise SettingError("it is not a number", value=given, fix=_WIDTH_FIX)
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _greater_than_zero(cls, given: Width | None) -> Width | None:
        if given is not None and (given <= 0 or (isinstance(given, float) and given > 1)):
            raise SettingError("it is out of range", value=given, fix=_WIDTH_FIX)
        return given

    @model_validator(mode="after")
    def _at_least_one(self) -> WidthSettings:
        if self.feed_forward is None and self.heads is None and self.hidden is None:
            raise SettingError(
                "no width is given", fix="give feed_forward, heads or hidden, such as {feed_forward: 0.5}"
            )
        return self


class InitSettings(Settings):
    """The student's initial weights: parts of the teacher, another model, or a config with fresh weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    from_: Literal["teacher"] | None = Field(
        default=None, alias="from", description="teacher: start from parts of the teacher"
    )
    layers: Layers | StackLayers | None = Field(
        default=None, description="of both stacks of an encoder-decoder, or {encoder: ..., decoder: ...}"
    )
    choose: Choose = Field(default="importance", description="how layers are chosen if `layers` is a number")
    width: WidthSettings | None = Field(default=None, description="widths, chosen by importance; None: the teacher's")
    vocabulary: Literal["all", "used"] = Field(
        default="all", description="used: only the tokens that the dataset needs, and a matching tokenizer"
    )
    rows: int = Field(
        default=64, ge=1, le=512, description="training rows of the dataset that importance is measured on"
    )
    model: str | None = Field(default=None, description="a folder or a hub id")
    revision: str | None = Field(default=None, description="of a hub model")
    config: dict[str, Any] | None = Field(
        default=None,
        description="fresh weights: a full config if it has `model_type`, else changes to the teacher's config",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _number_list_or_stacks(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            stacks = {name for name, layers in given.items() if layers is not None}
            if not stacks or not stacks <= StackLayers.model_fields.keys():
                raise SettingError(
                    "the stacks of an encoder-decoder are `encoder` and `decoder`",
                    value=dict(given),
                    fix="give the layers of each stack, such as {encoder: 3, decoder: 2}, or a number or a list",
                )
        elif isinstance(given, bool | float | str):
            raise SettingError(
                "it is neither a number of layers nor a list of them",
                value=given,
                fix="give how many layers of the teacher to keep, such as 16, or list them, such as [0, 5, 11]",
            )
        return given

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> InitSettings:
        origins = [self.from_ is not None, self.model is not None, self.config is not None]
        if self.config is not None and (self.from_ is not None or self.layers is not None):
            raise SettingError(
                "copied layers have the teacher's width, heads and feed-forward",
                setting="config",
                value=self.config,
                fix="remove `config` to copy layers unchanged, or remove `from` and `layers` for fresh weights of another "
                "shape",
            )
        if sum(origins) != 1:
            raise SettingError(
                f"it names {'several starts' if any(origins) else 'no start'} of the student",
                fix="give exactly one of `from: teacher` (with `layers`), `model`, or `config`",
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_the_origin(self) -> InitSettings:
        parts = [self.layers is not None, self.width is not None, self.vocabulary == "used"]
        if self.from_ is None and any(parts[:2]):
            named, example = ("layers", "layers: 16") if parts[0] else ("width", "width: {feed_forward: 0.5}")
            raise SettingError(
                "it applies only with `from: teacher`",
                setting=named,
                fix=f"give both, for instance {{from: teacher, {example}}}, or remove `{named}`",
            )
        if self.from_ is not None and not any(parts):
            raise SettingError(
                "the parts of the teacher to keep are not given",
                setting="from",
                value=self.from_,
                fix="give `layers`, `width` or `vocabulary: used`, for instance {from: teacher, layers: 16}",
            )
        if self.config is not None and parts[2]:
            raise SettingError(
                "it keeps rows of a model's embedding, and `config` starts from fresh weights",
                setting="vocabulary",
                value=self.vocabulary,
                fix="remove `vocabulary` or `config`",
            )
        if self.choose != "importance" and not self._counts:  # a resolved recipe contains the default
            raise SettingError(
                "`layers` is not a number of layers to choose",
                setting="choose",
                value=self.choose,
                fix="set layers to a number such as 16, or remove `choose`",
            )
        if self.revision is not None and self.model is None:
            raise SettingError(
                "it applies only with `model`",
                setting="revision",
                value=self.revision,
                fix="give `model` too, or remove `revision`",
            )
        return self

    @model_validator(mode="after")
    def _layers_in_order(self) -> InitSettings:
        by_stack = (
            {f"layers.{stack}": layers for stack, layers in self.layers}
            if isinstance(self.layers, StackLayers)
            else {"layers": self.layers}
        )
        for setting, layers in by_stack.items():
            if isinstance(layers, int) and layers < 1:
                raise SettingError(
                    "it must be at least 1",
                    setting=setting,
                    value=layers,
                    fix="give 1 or more, or a list such as [0, 5, 11]",
                )
            if isinstance(layers, tuple) and (not layers or min(layers) < 0 or sorted(set(layers)) != [*layers]):
                raise SettingError(
                    "it is not a rising list of layers",
                    setting=setting,
                    value=[*layers],
                    fix="list layers of the teacher from 0 in rising order, such as [0, 5, 11]",
                )
        return self

    @property
    def _counts(self) -> bool:
        """Whether the layers of a stack are given as a number, so that `choose` applies."""
        of = [self.layers.encoder, self.layers.decoder] if isinstance(self.layers, StackLayers) else [self.layers]
        return any(isinstance(one, int) for one in of)

    @property
    def measures_layers(self) -> bool:
        """Whether layers are chosen by their importance on rows of the dataset."""
        return self._counts and self.choose != "even"

    @property
    def needs_dataset(self) -> bool:
        """Whether the initial weights depend on rows of the dataset, so that labelling must come first."""
        return self.measures_layers or self.width is not None or self.vocabulary == "used"

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings that determine the initial weights, for a student's key; without unused ones, as in older keys."""
        shaping = self.model_dump(include={"from_", "layers", "model", "revision", "config"})
        if self.measures_layers:
            shaping["choose"] = self.choose
        if self.measures_layers or self.width is not None:
            shaping["rows"] = self.rows
        if self.width is not None:
            shaping["width"] = self.width.model_dump()
        if self.vocabulary == "used":
            shaping["vocabulary"] = self.vocabulary
        return shaping


class LossSettings(Settings):
    """The loss: weight * T^2 * divergence(teacher / T, student / T) + cross_entropy_weight * CE(completion, student).

    All other keys are options of the kind, which checks them: {kind: skewed-kl, alpha: 0.1}.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str = Field(default="forward-kl", description="the divergence; docs/distillation.md lists them")
    temperature: float = Field(default=1.0, gt=0, description="T, for teacher and student")
    weight: float = Field(default=1.0, ge=0, description="of the divergence; 0: cross-entropy only")
    cross_entropy_weight: float = Field(default=1.0, ge=0, description="on the completion's tokens; 0: divergence only")

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
    min_delta: float = Field(default=0.0, ge=0, description="minimum improvement, nats")


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

    num_processes: int | None = Field(default=None, ge=1, description="None: as in the config file, or one per GPU")
    config_file: str | None = Field(
        default=None, description="written by `accelerate config`; None: its default file, if that exists"
    )
    arguments: tuple[str | int, ...] = Field(default=(), description="further command-line arguments")


_OF_A_TEACHER = {  # settings of a teacher that is fine-tuned, by their names in `student`
    "init": "teacher.model",
    "init.model": "teacher.model",
    "init.config": "teacher.finetune.config",
    "trust_remote_code": "teacher.options.trust_remote_code",
}


class StudentSettings(Settings):
    """The student and its training."""

    _is_teacher: bool = PrivateAttr(default=False)  # made of `teacher.finetune`

    init: InitSettings = Field(description="what the student starts from")
    mode: Literal["white-box", "black-box", "gold"] = Field(
        default="white-box", description="gold: learns from references, not the teacher"
    )
    labels: Literal["stored", "live"] = Field(
        default="stored", description="live: run the teacher's forward pass in every step, store nothing"
    )
    loss: LossSettings = Field(default=LossSettings(), description="divergence and weights")
    max_length: int = Field(
        default=1024, ge=2, description="tokens of prompt and completion; longer rows are skipped and counted"
    )
    freeze: tuple[Part, ...] = Field(
        default=(), description="parts that are not trained; with tied weights, either one freezes both"
    )
    packing: bool = Field(
        default=False, description="pack rows up to max_length tokens, without attention between them"
    )
    lora: LoraSettings | None = Field(default=None, description="None: all weights are trained")
    early_stopping: EarlyStoppingSettings | None = Field(default=None, description="None: train to the last step")
    head_chunk: int = Field(default=512, ge=1, description="positions whose logits are in memory at once")
    quantize: Literal["int8"] | None = Field(default=None, description="also write a quantised copy of the student")
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with a model; only for models whose code you have read"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="arguments of transformers.TrainingArguments")
    launch: LaunchSettings | None = Field(default=None, description="None: train in this process")

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
    def _freeze_or_adapters(self) -> StudentSettings:
        refuse_freeze_with_adapters(self.freeze, self.lora)
        return self

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
        return _OF_A_TEACHER.get(name, f"teacher.finetune.{name}")

    def shaping(self, mode: str) -> dict[str, Any]:
        """Return the settings that determine a student's weights if trained in `mode`: equal for equal students."""
        unused = {"quantize", "launch"} | ({"loss", "labels"} if mode != "white-box" else set())
        return self.model_dump(exclude=unused) | {"mode": mode, "init": self.init.shaping}
