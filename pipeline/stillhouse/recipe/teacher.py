"""The `teacher` part of a recipe: the model that labels."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from stillhouse.recipe.finetune import FinetuneSettings
from stillhouse.settings import SettingError, Settings


class PriceSettings(Settings):
    """The teacher's prices, if `genai-prices` lacks them or has wrong ones."""

    input_usd_per_million: float = Field(ge=0, description="US dollars per million prompt tokens")
    output_usd_per_million: float = Field(
        ge=0, description="US dollars per million completion tokens, reasoning included"
    )


class TeacherSettings(Settings):
    """The model that labels. `options` are those of the kind, which checks them."""

    kind: str = Field(
        description="transformers, ensemble, vllm, openai, anthropic, scripted, reference, or a kind of another package"
    )
    model: str = Field(default="", description="a folder, a hub id, or the API's name of the model")
    revision: str | None = Field(default=None, description="revision of a hub model; None: the newest")
    finetune: FinetuneSettings | None = Field(
        default=None,
        description="fine-tune `model` on the references, and label with the result; None: `model` labels",
    )
    task_prefix: str | None = Field(
        default=None, description='required start of every prompt; None: as in `model`\'s config; "": none'
    )
    price: PriceSettings | None = Field(
        default=None, description="price of tokens; None: looked up by model and provider"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of this kind, see below")

    @property
    def labelling_model(self) -> str:
        """The folder or hub id of the model that labels: the fine-tuned one, if `finetune` is set."""
        return self.finetune.folder if self.finetune else self.model

    @property
    def labelling_revision(self) -> str | None:
        """The hub revision of the model that labels; None if it is fine-tuned."""
        return None if self.finetune else self.revision

    @property
    def as_finetuned(self) -> TeacherSettings:
        """The settings of the model that labels, without its fine-tuning; it has the same identity."""
        model = {"model": self.labelling_model, "revision": self.labelling_revision, "finetune": None}
        return self.model_copy(update=model)

    @model_validator(mode="after")
    def _only_a_local_model_is_fine_tuned(self) -> TeacherSettings:
        if self.finetune is not None and self.kind != "transformers":
            raise SettingError(
                "teacher.finetune is set, and only a model that runs in this process can be fine-tuned",
                setting="kind",
                value=self.kind,
                fix="set teacher.kind to transformers, or remove teacher.finetune",
            )
        return self
