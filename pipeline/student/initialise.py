"""Where a student starts: layers of the teacher, a model of its own, or a config with fresh weights.

Copying evenly spaced layers is the start of DistilBERT and its kin (Shleifer and Rush, arXiv 2010.13002); as a baseline it
stands in every report, untrained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from pipeline.causal import DTYPES, quiet_transformers
from pipeline.config import Recipe
from pipeline.errors import RecipeError, TrainingError
from pipeline.model_files import find_model, teacher_files
from pipeline.student_settings import InitSettings

_LAYER = re.compile(r"^(.*\.)?(layers|h|blocks)\.(\d+)\.(.*)$")  # model.layers.7.mlp.up_proj.weight


def initialise(recipe: Recipe, init: InitSettings, folder: Path) -> None:
    """Write the untrained student, weights and tokenizer, into `folder`.

    Raises:
        RecipeError: more layers are asked for than the teacher has, or the config is no model's.
        TeacherUnavailable: a model that is named is not there.
        TrainingError: the teacher's layers cannot be told apart.
    """
    quiet_transformers()
    torch.manual_seed(recipe.seed)
    if init.model is not None:
        files = find_model(init.model, setting="student.init.model")
        model, source = _load(files.folder), files.folder
    elif init.config is not None:
        source = teacher_files(recipe).folder
        model = _fresh(init.config)
    else:
        source = teacher_files(recipe).folder
        model = copy_layers(_load(source), init.layers or 1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def evenly_spaced(layers: int, of: int) -> list[int]:
    """Which layers a shallower student keeps: evenly spaced, the first and the last among them."""
    if layers == 1:
        return [0]
    return [round(place * (of - 1) / (layers - 1)) for place in range(layers)]


def copy_layers(teacher: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """A model of the teacher's kind and width with only some of its layers; everything else is the teacher's.

    `layers` is how many, evenly spaced, or which, counted from 0.
    """
    depth = int(teacher.config.num_hidden_layers)
    if isinstance(layers, int) and layers > depth:
        raise RecipeError(f"student.init.layers is {layers}, and the teacher has only {depth}: choose 1 to {depth}")
    kept = evenly_spaced(layers, depth) if isinstance(layers, int) else [*layers]
    if max(kept) >= depth:
        raise RecipeError(f"student.init.layers names layer {max(kept)}, and the teacher's are 0 to {depth - 1}")
    config = _shallow_config(teacher.config, kept)
    student = type(teacher)(config).to(teacher.dtype)
    weights = _kept_weights(teacher.state_dict(), kept)
    missing, unexpected = student.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise TrainingError(
            f"layers of a {config.model_type} model cannot be copied: {[*missing, *unexpected][:3]} do not match. "
            "Set student.init.model to a small model of the same tokenizer instead."
        )
    student.generation_config = teacher.generation_config
    return student


def _shallow_config(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """The config for the kept layers; settings that list one value a layer keep the kept layers' values."""
    depth = int(config.num_hidden_layers)
    settings = config.to_dict()
    for key, value in settings.items():
        if isinstance(value, list) and len(value) == depth:
            settings[key] = [value[layer] for layer in kept]
    settings["num_hidden_layers"] = len(kept)
    return type(config).from_dict(settings)


def _kept_weights(weights: dict[str, torch.Tensor], kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """Weights of the kept layers under their new numbers, and all that belongs to no layer."""
    renumbered = {old: new for new, old in enumerate(kept)}
    result = {}
    for name, tensor in weights.items():
        match = _LAYER.match(name)
        if match is None:
            result[name] = tensor
        elif int(match[3]) in renumbered:
            result[f"{match[1] or ''}{match[2]}.{renumbered[int(match[3])]}.{match[4]}"] = tensor
    return result


def _load(folder: Path) -> PreTrainedModel:
    """A model in the data type that its file has."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def _fresh(config: dict[str, object]) -> PreTrainedModel:
    settings = dict(config)
    kind = settings.pop("model_type", None)
    try:
        made = AutoConfig.for_model(str(kind), **settings)
    except ValueError:
        raise RecipeError(
            f"student.init.config.model_type is {kind!r}: name one that transformers knows, such as llama"
        ) from None
    return AutoModelForCausalLM.from_config(made, dtype=DTYPES["float32"])
