"""An int8 copy of a finished student for small devices: weight-only quantisation of linear layers, by torchao.

    check_quantizable(recipe, student)                  # before anything is sent or trained
    card = add_int8(folder, recipe, student, dataset)    # data/students/<recipe>/<variant>/int8/, a model's folder too

Each row of a linear layer's weight is stored as 8-bit integers with one scale. Embeddings, norms and the head are not
quantised: transformers 5.23 with torchao 0.18 skips a tied head, and a head untied by its own option computes other logits
after reloading. The copy is safetensors; transformers loads it if torchao is installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import RECIPE_FILE
from stillhouse.storage.durable import fsync_files, write_atomically
from stillhouse.student.finished.card import write_cards
from stillhouse.student.finished.folder import INT8, Int8Copy, StudentCard, StudentFolder, weight_megabytes

if TYPE_CHECKING:
    import torch


def check_quantizable(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse `student.quantize` if the finished student could not be quantised, from its config alone.

    Raises:
        RecipeError: torchao is not installed, or a student of this kind has no linear layers.
        TeacherUnavailable: the model that the student starts from cannot be found.
    """
    if student.quantize is None:
        return
    require_torchao()
    from stillhouse.student.start.start_config import meta_model

    model = meta_model(recipe, student)
    if not _linear_layers(model):
        raise RecipeError(
            f"a {model.config.model_type} model has no linear layers that torchao can quantise (GPT-2's are of "
            "another kind)",
            setting="student.quantize",
            value="int8",
            fix="set it to null, or start from a model such as a Llama or Qwen",
        )


def require_torchao() -> None:
    """Check that torchao is installed.

    Raises:
        RecipeError: torchao is not installed; the message has the pip command.
    """
    if importlib.util.find_spec("torchao") is None:
        raise RecipeError(
            "torchao is not installed",
            setting="student.quantize",
            value="int8",
            fix="run `pip install 'stillhouse[int8]'`, or set it to null",
        )


def add_int8(folder: StudentFolder, recipe: Recipe, student: StudentSettings, dataset: Dataset) -> StudentCard:
    """Make the quantised copy of an existing student, in a subfolder of its folder.

    Raises:
        RecipeError: torchao is not installed.
        TrainingError: the student does not exist.
    """
    require_torchao()
    card = folder.trained_card()
    if card is None:
        raise TrainingError(f"{folder.path} has no student of this recipe to quantise", fix="run `stillhouse distill`")
    made = folder.work / INT8
    shutil.rmtree(made, ignore_errors=True)
    copy = quantize(folder.path, made, trust_remote_code=student.trust_remote_code)
    card = card.model_copy(update={"int8": copy})
    fsync_files(made)
    folder.publish_int8(made)
    write_cards(folder.path, card, recipe, dataset.manifest)
    write_atomically(folder.path / RECIPE_FILE, recipe.as_yaml().encode())
    folder.write_card(card)
    return card


def quantize(source: Path, folder: Path, *, trust_remote_code: bool = False) -> Int8Copy:
    """Write the int8 copy of the model in `source`, with its tokenizer, as safetensors; all else keeps its data type."""
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.utils import TorchAOBaseTensor
    from transformers import AutoConfig, TorchAoConfig

    from stillhouse.models.load import auto_class, quiet_transformers
    from stillhouse.student.start.initialise import write_model

    quiet_transformers()
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    model = auto_class(config).from_pretrained(
        source,
        config=config,
        dtype="auto",
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
    )
    quantised = sum(weight.numel() for weight in model.parameters() if isinstance(weight, TorchAOBaseTensor))
    write_model(model, source, folder, trust_remote_code=trust_remote_code)
    _unlist_undotted_names(folder)
    return Int8Copy(parameters=quantised, megabytes=weight_megabytes(folder), torchao=version("torchao"))


def _unlist_undotted_names(folder: Path) -> None:
    """Make a copy loadable for torchao 0.18 if a tensor's name has no dot (BART's `final_logits_bias`).

    Every file lists the names of all tensors, and torchao splits each at its last dot to reassemble quantised ones. Tensors
    that are not quantised need not be listed: transformers loads them itself.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
        names = json.loads(metadata.get("tensor_names", "[]"))
        dotted = [name for name in names if "." in name]
        if dotted != names:
            save_file(load_file(file), file, metadata=metadata | {"tensor_names": json.dumps(dotted)})


def _linear_layers(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Return the layers that torchao quantises: every linear layer but the head."""
    import torch

    head = model.get_output_embeddings()  # type: ignore[operator]
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
