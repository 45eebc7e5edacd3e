"""Several language models in this process that label as one: in every step their distributions are averaged.

    teachers: {ensemble: [data/teachers/a, data/teachers/b], weights: [2, 1]}

is short for

    teacher:
      kind: ensemble
      options: {teachers: [{model: data/teachers/a}, {model: data/teachers/b}], weights: [2, 1]}

Each token is drawn from p(v) = w_1 p_1(v) + ... + w_n p_n(v), given the same text so far, and the soft labels are those of
p over the whole vocabulary. The weights are divided by their sum. All models must have one tokenizer and chat template.
Models behind servers cannot be averaged while they write: have one write and the others score, and use `stillhouse datasets
ensemble`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from stillhouse.errors import RecipeError
from stillhouse.models.files import ModelFiles
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import TeacherIdentity, content_hash
from stillhouse.settings import SettingError, Settings, parse_options
from stillhouse.teachers.base import FormerIdentity
from stillhouse.teachers.transformers import TransformersOptions, TransformersTeacher, checked_files, load

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor

    from stillhouse.models.layout import TokenBatch
    from stillhouse.models.load import LanguageModel


class EnsembleOptions(Settings):
    """`teacher.options` of this kind."""

    teachers: tuple[TeacherSettings, ...] = Field(
        min_length=2,
        description="the models: each a folder or hub id, or settings as in `teacher`, of kind transformers",
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="one positive number for each model; None: all the same"
    )
    batch_size: int = Field(default=32, ge=1, description="prompts per batch")

    @field_validator("teachers", mode="before")
    @classmethod
    def _models_by_name(cls, given: Any) -> Any:
        """Accept a model's name in place of settings, and settings without a kind."""
        if not isinstance(given, list | tuple):
            return given
        full = [{"model": one} if isinstance(one, str) else one for one in given]
        return [{"kind": "transformers", **one} if isinstance(one, Mapping) else one for one in full]

    @model_validator(mode="after")
    def _models_run_here(self) -> EnsembleOptions:
        for place, one in enumerate(self.teachers):
            if one.kind != "transformers":
                raise SettingError(
                    "the models of an ensemble run in this process",
                    setting=f"teachers[{place}].kind",
                    value=one.kind,
                    fix="set it to transformers; for servers, have one write and the others score its completions, and use "
                    "`stillhouse datasets ensemble`",
                )
            if one.finetune is not None:
                raise SettingError(
                    "a model of an ensemble is not fine-tuned with it",
                    setting=f"teachers[{place}].finetune",
                    fix="fine-tune each model with a recipe of its own, and name its folder here",
                )
        return self

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> EnsembleOptions:
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.teachers) or not all(0 < one < float("inf") for one in weights)
        ):
            raise SettingError(
                f"there are {len(self.teachers)} models",
                setting="weights",
                value=list(weights),
                fix="give one positive number for each",
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, divided by their sum."""
        weights = self.weights or (1.0,) * len(self.teachers)
        return tuple(one / sum(weights) for one in weights)


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> EnsembleTeacher:
    """Find the models' files and check the options; nothing is loaded yet."""
    options = parse_options("teacher.options", settings.options, EnsembleOptions)
    members = []
    for one in options.teachers:
        own = parse_options("teacher.options.teachers.options", one.options, TransformersOptions)
        members.append((checked_files(one, own), own))
    _refuse_other_tokens([files for files, _ in members])
    return EnsembleTeacher(members, options, label, seed)


def _refuse_other_tokens(members: Sequence[ModelFiles]) -> None:
    """Refuse models that do not read the same tokens.

    Raises:
        RecipeError: the models' tokenizers, chat templates or kinds differ.
    """
    first, *others = members
    for other in others:
        for what, one, two in (
            ("tokenizer", first.tokenizer_sha256, other.tokenizer_sha256),
            ("chat template", first.chat_template_sha256, other.chat_template_sha256),
            ("decoder start token", first.decoder_start_id, other.decoder_start_id),
            ("kind of model", first.is_encoder_decoder, other.is_encoder_decoder),
        ):
            if one != two:
                raise RecipeError(
                    f"{first.name} and {other.name} have not the same {what}, so their distributions cannot be averaged",
                    setting="teacher.options.teachers",
                    fix="use models of one family",
                )


class EnsembleTeacher(TransformersTeacher):
    """The mixture of several models in this process; the protocol is `Teacher` in base.py."""

    def __init__(
        self,
        members: Sequence[tuple[ModelFiles, TransformersOptions]],
        options: EnsembleOptions,
        label: LabelSettings,
        seed: int,
    ) -> None:
        files, own = members[0]
        super().__init__(files, own.model_copy(update={"batch_size": options.batch_size}), label, seed)
        self._members = members
        self._shares = options.shares

    @cached_property
    def identity(self) -> TeacherIdentity:
        files = [one for one, _ in self._members]
        weighted = [[one.content_sha256, share] for one, share in zip(files, self._shares, strict=True)]
        return replace(
            super().identity,
            kind="ensemble",
            model=" + ".join(one.name for one in files),
            revision=None,
            content_sha256=content_hash(weighted),
            options_sha256=content_hash([own.dtype for _, own in self._members]),
        )

    def former(self, stored: Callable[[], Sequence[TeacherIdentity]]) -> Sequence[FormerIdentity]:
        """Return nothing: earlier releases had no ensembles."""
        return ()

    async def close(self) -> None:
        """Free the models' memory."""
        await super().close()
        self.__dict__.pop("_others", None)

    @cached_property
    def _others(self) -> list[LanguageModel]:
        """The models after the first."""
        return [load(files, own) for files, own in self._members[1:]]

    def _mixed_in(self, prompts: Sequence[Sequence[int]]) -> Sequence[LogitsProcessor]:
        from stillhouse.models.mixture import TeacherMixture

        sums = np.cumsum(self._shares)  # the share of each model among itself and those before it
        shares = [share / total for share, total in zip(self._shares, sums, strict=True)]
        return [TeacherMixture(lm, prompts, float(share)) for lm, share in zip(self._others, shares[1:], strict=True)]

    def _completion_logits(self, layout: TokenBatch) -> Tensor:
        """Return the log-probabilities of the mixture: (completion tokens, vocabulary)."""
        import torch

        from stillhouse.models.layout import completion_logits
        from stillhouse.models.mixture import fit_width

        logprobs = super()._completion_logits(layout).log_softmax(dim=-1)
        mixed = logprobs + float(np.log(self._shares[0]))
        for lm, share in zip(self._others, self._shares[1:], strict=True):
            logits = completion_logits(lm.model, layout.to(lm.device)).to(mixed)
            logprobs = fit_width(logits, mixed.shape[-1]).log_softmax(dim=-1)
            mixed = torch.logaddexp(mixed, logprobs + float(np.log(share)))
        return mixed

    @cached_property
    def _sampled_identity(self) -> TeacherIdentity:
        return replace(self.identity, seed=None)
