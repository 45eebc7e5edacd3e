"""The `student.init` part of a recipe: parts of the teacher, another model, or a config with fresh weights.

init: {from: teacher, layers: 16, width: {feed_forward: 0.75}, vocabulary: used}
init: {model: HuggingFaceTB/SmolLM2-135M-Instruct}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from stillhouse.settings import SettingError, Settings

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

    feed_forward: Width | None = Field(
        default=None,
        description="neurons between the two feed-forward matrices, a number or a share; None: all",
    )
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
        default=None,
        description="layers of the teacher to keep: a number, or a list of indices from 0; for an encoder-decoder they "
        "apply to both stacks, or give {encoder: ..., decoder: ...}; None: all",
    )
    choose: Choose = Field(default="importance", description="how layers are chosen if `layers` is a number")
    width: WidthSettings | None = Field(default=None, description="widths, chosen by importance; None: the teacher's")
    vocabulary: Literal["all", "used"] = Field(
        default="all", description="used: only the tokens that the dataset needs, and a matching tokenizer"
    )
    rows: int = Field(
        default=64, ge=1, le=512, description="training rows of the dataset that importance is measured on"
    )
    model: str | None = Field(default=None, description="another model to start from: a folder or a hub id")
    revision: str | None = Field(default=None, description="revision of a hub model; None: the newest")
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
                f"{'more than one' if any(origins) else 'none'} of `from`, `model` and `config` is given",
                fix="give exactly one of `from: teacher` (with `layers`), `model`, or `config`",
            )
        return self

    @model_validator(mode="after")
    def _parts_are_of_the_teacher(self) -> InitSettings:
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
        return self

    @model_validator(mode="after")
    def _no_setting_is_unused(self) -> InitSettings:
        if self.choose != "importance" and not self._chooses_layers:  # a resolved recipe contains the default
            raise SettingError(
                "it has no effect, because `layers` is not a number",
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
    def _chooses_layers(self) -> bool:
        """Whether the layers of a stack are given as a number, so that `choose` applies."""
        of = [self.layers.encoder, self.layers.decoder] if isinstance(self.layers, StackLayers) else [self.layers]
        return any(isinstance(one, int) for one in of)

    @property
    def measures_layers(self) -> bool:
        """Whether layers are chosen by their importance on rows of the dataset."""
        return self._chooses_layers and self.choose != "even"

    @property
    def needs_dataset(self) -> bool:
        """Whether the initial weights depend on rows of the dataset, so that labelling must come first."""
        return self.measures_layers or self.width is not None or self.vocabulary == "used"

    @property
    def key_settings(self) -> dict[str, Any]:
        """The settings that determine the initial weights, for a student's key; without unused ones, as in older keys."""
        key_settings = self.model_dump(include={"from_", "layers", "model", "revision", "config"})
        if self.measures_layers:
            key_settings["choose"] = self.choose
        if self.measures_layers or self.width is not None:
            key_settings["rows"] = self.rows
        if self.width is not None:
            key_settings["width"] = self.width.model_dump()
        if self.vocabulary == "used":
            key_settings["vocabulary"] = self.vocabulary
        return key_settings
