"""Where a student starts: layers of the teacher, a model of its own, or a config with fresh weights.

Copying evenly spaced layers is the start of DistilBERT and its kin (Shleifer and Rush, arXiv 2010.13002); as a baseline it
stands in every report, untrained. start_config.py says what is refused before any weights are loaded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config import Recipe
from pipeline.errors import TrainingError
from pipeline.language_model import load_tokenizer, load_weights, quiet_transformers, token_ids_alone
from pipeline.model_files import ModelFiles, start_files
from pipeline.student.start_config import check_start, ending, fresh_config, kept_layers, read_config, with_layers
from pipeline.student_settings import StudentSettings

_GENERATION = "generation_config.json"
_LAYER = re.compile(r"^(.*?\.)?(layers|h|blocks)\.(\d+)\.(.*)$")  # model.layers.7.mlp.up_proj.weight


def initialise(recipe: Recipe, student: StudentSettings, folder: Path) -> None:
    """Write the untrained student, weights and tokenizer, into `folder`.

    Raises:
        RecipeError: as `check_start` does, and nothing is written then.
        TeacherUnavailable: a model that is named is not there.
        TrainingError: the teacher's layers cannot be told apart.
    """
    quiet_transformers()
    check_start(recipe, student)
    torch.manual_seed(recipe.seed)
    init, trusted = student.init, student.trust_remote_code
    files = start_files(recipe, init)
    if init.config is not None:
        model = _fresh(recipe, student, files)
    else:
        model = load_weights(files.folder, dtype="auto", trust_remote_code=trusted)
        if init.layers is not None:
            model = copy_layers(model, init.layers)
    of_its_own = init.config is not None and "model_type" in init.config  # may not know how the teacher likes to sample
    write_model(model, files.folder, folder, trust_remote_code=trusted, sampling=not of_its_own)


def write_model(
    model: PreTrainedModel, source: Path, folder: Path, *, trust_remote_code: bool, sampling: bool = True
) -> None:
    """Write a model that was made of the one in `source`, with its tokenizer, as safetensors.

    With `sampling` what it has for `generate` is taken as it is: the library writes less than it reads, and refuses some.
    """
    model.generation_config = token_ids_alone(model.generation_config)
    model.save_pretrained(folder)
    if sampling and (source / _GENERATION).is_file():
        shutil.copyfile(source / _GENERATION, folder / _GENERATION)
    load_tokenizer(source, trust_remote_code=trust_remote_code).save_pretrained(folder)


def copy_layers(teacher: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """A model of the teacher's kind and width with only some of its layers; everything else is the teacher's.

    `layers` is how many, evenly spaced, or which, counted from 0.
    """
    kept = kept_layers(teacher.config, layers)
    config = type(teacher.config).from_dict(with_layers(teacher.config, kept))
    student = type(teacher)(config).to(teacher.dtype)
    weights = _kept_weights(teacher.state_dict(), kept)
    missing, unexpected = student.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise TrainingError(
            f"layers of a {config.model_type} model cannot be copied: {[*missing, *unexpected][:3]} do not match. "
            "Set student.init.model to a small model of the same tokenizer instead."
        )
    student.generation_config = token_ids_alone(teacher.generation_config)
    return student


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


def _fresh(recipe: Recipe, student: StudentSettings, files: ModelFiles) -> PreTrainedModel:
    """A model of the recipe's config with random weights, in float32 unless the config says otherwise."""
    config = fresh_config(recipe, student)
    trusted = student.trust_remote_code
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32, trust_remote_code=trusted)
    teacher = read_config(files, "teacher.model", trust_remote_code=trusted)
    model.generation_config = ending(files, teacher)
    return model
