"""Describe a student from configs alone, to refuse what cannot work before any weights are loaded.

check_start(recipe, student)                 # the model, the layers or the config that `student.init` names
model = meta_model(recipe, student)     # its layers by name and shape
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.models.checks import refuse_pickles, refuse_untrusted_code, refuse_without_decoder_start
from stillhouse.models.find import init_model_files
from stillhouse.models.load import auto_class
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.start.fresh_config import dry_run, fresh_config
from stillhouse.student.start.kinds import read_config, refuse_mismatched_kind, refuse_unsupported_model
from stillhouse.student.start.stacks import Kept, config_for_layers, kept_layers, weights_for_layers
from stillhouse.student.start.vocabulary import check_used_vocabulary
from stillhouse.student.start.width_plan import check_widths


def check_start(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a start from which no student can be made, by its files and its config alone.

    Raises:
        RecipeError: the model cannot be a student, or is of the other kind than the teacher (causal, encoder-decoder); the
            teacher lacks the layers or the widths; the tokenizer cannot be cut; or the config does not make a model.
        TeacherUnavailable: a model cannot be found.
    """
    init = student.init
    files = init_model_files(recipe, student, weights=False)
    setting = "teacher.model" if init.model is None else student.setting("init.model")
    refuse_untrusted_code(files, setting, student.setting("trust_remote_code"), trusted=student.trust_remote_code)
    config = read_config(files, setting, trust_remote_code=student.trust_remote_code)
    if init.config is None or "model_type" not in init.config:
        refuse_unsupported_model(config, setting, files.name)
    if init.config is not None:
        dry_run(
            fresh_config(recipe, student), student.setting("init.config"), trust_remote_code=student.trust_remote_code
        )
        return
    if getattr(config, "quantization_config", None):
        raise RecipeError(
            "its weights are quantised, and a student cannot be trained from quantised weights",
            setting=setting,
            value=files.name,
            fix="use the model that it was quantised from",
        )
    refuse_mismatched_kind(recipe, config, setting, files.name)
    refuse_without_decoder_start(files, setting)
    if init.layers is not None:
        kept = kept_layers(config, init.layers)
        if config.is_encoder_decoder:
            _refuse_unlike_layers(config, kept, trust_remote_code=student.trust_remote_code)
    if init.width is not None:
        check_widths(config, init.width)
    if init.vocabulary == "used":
        check_used_vocabulary(recipe, student, files)
    if Path(files.name).is_dir():  # a hub model's weights are downloaded later
        refuse_pickles(files, setting)


def meta_model(recipe: Recipe, student: StudentSettings) -> PreTrainedModel:
    """Return the student's model on the meta device, with names and shapes but no data.

    It has the teacher's whole depth if layers are copied.

    Raises:
        RecipeError: the settings of the start are wrong or its config cannot be read.
        TeacherUnavailable: the model that the student starts from cannot be found.
    """
    return _shapes(student_config(recipe, student), trust_remote_code=student.trust_remote_code)


def student_config(recipe: Recipe, student: StudentSettings) -> PretrainedConfig:
    """Return the config that a student starts from, with the teacher's whole depth if layers are copied.

    Raises:
        RecipeError: the settings of the start are wrong or its config cannot be read.
        TeacherUnavailable: the model that the student starts from cannot be found.
    """
    if student.init.config is not None:
        return fresh_config(recipe, student)
    files = init_model_files(recipe, student, weights=False)
    setting = "teacher.model" if student.init.model is None else student.setting("init.model")
    return read_config(files, setting, trust_remote_code=student.trust_remote_code)


def _shapes(config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def _refuse_unlike_layers(config: PretrainedConfig, kept: Sequence[Kept], *, trust_remote_code: bool) -> None:
    """Refuse layers that do not make a model of the same kind: every other layer may be of another type (Switch)."""
    teacher = _shapes(config, trust_remote_code=trust_remote_code)
    student = _shapes(type(config).from_dict(config_for_layers(config, kept)), trust_remote_code=trust_remote_code)
    copied = {name: weight.shape for name, weight in weights_for_layers(teacher.state_dict(), kept).items()}
    wanted = {name: weight.shape for name, weight in student.state_dict().items()}
    if unlike := sorted(name for name in copied.keys() | wanted.keys() if copied.get(name) != wanted.get(name)):
        raise RecipeError(
            f"the layers of a {config.model_type} model cannot be copied one by one: {', '.join(unlike[:3])} do not match",
            setting="student.init.layers",
            fix="set student.init to {model: a small encoder-decoder of the same tokenizer}, or to {config: ...}",
        )
