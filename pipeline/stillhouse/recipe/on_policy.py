"""The `on_policy` part of a recipe: distillation in rounds, on the text that the student writes.

on_policy: {rounds: 4, prompts: 512, sampling: {temperature: 1.0, max_tokens: 128}, mix: 0.5, loss: {kind: reverse-kl}}

In a round the student answers prompts of the training split, the teacher scores exactly these tokens, and the student
learns from the scores and, as the share `mix` of its rows, from the teacher's own dataset (GKD, arXiv 2306.13649).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from stillhouse.recipe.label import SamplingSettings, SoftSettings
from stillhouse.recipe.student import LossSettings
from stillhouse.settings import SettingError, Settings


class WriterSettings(Settings):
    """What runs the student while it writes."""

    kind: Literal["transformers", "vllm"] = Field(
        default="transformers", description="transformers: in this process; vllm: a server started for each round"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="vllm: as teacher.options of that kind, such as {serve: {dtype: bfloat16}}"
    )


class OnPolicySettings(Settings):
    """Rounds of on-policy distillation, after the student has learnt from the teacher's dataset."""

    start: Literal["untrained"] | None = Field(
        default=None,
        description="the student that writes in the first round: untrained: that of student.init as it is; None: it first "
        "learns from the dataset",
    )
    rounds: int = Field(default=4, ge=1, description="number of rounds; a finished student can be given more")
    prompts: int = Field(default=512, ge=1, description="prompts that the student answers in each round")
    prompts_from: Literal["newest"] | None = Field(
        default=None,
        description="the dataset version that prompts come from: newest: the newest one when a round begins, prompts of no "
        "earlier round first; None: the version that the student learns from",
    )
    samples: int = Field(default=1, ge=1, description="answers per prompt in each round")
    sampling: SamplingSettings = Field(
        default=SamplingSettings(temperature=1.0, max_tokens=128), description="how the student samples its answers"
    )
    writer: WriterSettings = Field(
        default=WriterSettings(), description="what runs the student while it writes its answers"
    )
    batch_size: int = Field(default=64, ge=1, description="answers that the student writes at once in this process")
    teacher_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the teacher in the distribution that answers are drawn from, token by token; 0: the "
        "student's alone",
    )
    soft: SoftSettings | None = Field(
        default=None,
        description="soft labels that the teacher gives to the answers; None: as in label.soft, or the 32 likeliest",
    )
    mix: float = Field(
        default=0.5, ge=0, lt=1, description="share of a round's rows that come from the teacher's dataset"
    )
    loss: LossSettings | None = Field(default=None, description="loss of the rounds; None: as in student.loss")
    train: dict[str, Any] = Field(
        default_factory=dict,
        description="training arguments of a round; those not given are as in student.train, with one epoch and "
        "no checkpoint unless save_strategy is set",
    )
    patience: int | None = Field(
        default=None, ge=1, description="rounds without a lower held-out KL after which it ends; None: never"
    )

    @model_validator(mode="before")
    @classmethod
    def _lmbda_is_the_other_share(cls, given: Any) -> Any:
        """Accept GKD's `lmbda`, the share of rows that the student wrote, in place of `mix`."""
        if not isinstance(given, Mapping) or "lmbda" not in given:
            return given
        rest = {key: value for key, value in given.items() if key != "lmbda"}
        lmbda = given["lmbda"]
        if "mix" in rest or not isinstance(lmbda, int | float) or not 0 < lmbda <= 1:
            raise SettingError(
                "it is the share of a round's rows that the student wrote, 1 - mix",
                setting="lmbda",
                value=lmbda,
                fix="give a number above 0 and up to 1, and remove mix, or set mix alone",
            )
        return {**rest, "mix": 1 - lmbda}

    @model_validator(mode="after")
    def _samples_differ(self) -> OnPolicySettings:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise SettingError(
                "sampling.temperature is 0, so all answers to a prompt would be the same",
                setting="samples",
                value=self.samples,
                fix="set samples to 1, or sampling.temperature to 1.0",
            )
        return self

    @model_validator(mode="after")
    def _mixtures_and_rewards_are_those_at_temperature_1(self) -> OnPolicySettings:
        is_policy_gradient = self.loss is not None and self.loss.kind == "minillm"
        if not (is_policy_gradient or self.teacher_share > 0):
            return self
        reason = "loss.kind is minillm" if is_policy_gradient else f"teacher_share is {self.teacher_share}"
        for name in ("temperature", "top_p"):
            value = getattr(self.sampling, name)
            if value != 1:
                raise SettingError(
                    f"{reason}, whose weights are those of answers drawn at temperature 1 from all tokens",
                    setting=f"sampling.{name}",
                    value=value,
                    fix="set it to 1.0",
                )
        if self.teacher_share > 0 and self.writer.kind != "transformers":
            raise SettingError(
                "a server of the student does not draw from the teacher too",
                setting="teacher_share",
                value=self.teacher_share,
                fix="set it to 0, or writer.kind to transformers",
            )
        return self

    def rows_from_dataset(self, rollouts: int) -> int:
        """Return how many rows of the teacher's dataset are added to this number of rollouts."""
        return round(rollouts * self.mix / (1 - self.mix))
