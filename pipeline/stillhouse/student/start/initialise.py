"""Create the untrained student: from parts of the teacher, another model, or a config with random weights.

Of a teacher the most important parts are kept (Minitron, arXiv 2407.14679); the modules of start/ measure importance. Every
report includes the untrained student as a baseline. start_config.py checks the settings before any weights are loaded.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stillhouse.dataset.store import Dataset
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import init_model_files
from stillhouse.models.load import auto_class, load_tokenizer, load_weights, quiet_transformers, token_ids_alone
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.storage.durable import write_atomically
from stillhouse.student.start.fresh_config import fresh_config, special_tokens_for_config
from stillhouse.student.start.kinds import read_config
from stillhouse.student.start.parts import parts_of_teacher
from stillhouse.student.start.record import Start
from stillhouse.student.start.start_config import check_start
from stillhouse.student.start.vocabulary import cut_vocabulary
from stillhouse.student.vocabulary_map import copy_vocabulary_map

_GENERATION = "generation_config.json"


def initialise(
    recipe: Recipe,
    student: StudentSettings,
    folder: Path,
    labelled: Dataset | None = None,
    progress: Progress = silent,
) -> PreTrainedModel:
    """Write the untrained student, weights and tokenizer, to `folder`, and return its model.

    Args:
        recipe: the recipe, which names the teacher.
        student: the student's settings.
        folder: the folder to write to.
        labelled: the teacher's completions; needed if `student.init.needs_dataset`.
        progress: called with the activity, the items done and the total, while importance is measured.

    Raises:
        RecipeError: the settings of the start are wrong or do not fit the teacher; nothing is written.
        TeacherUnavailable: a model cannot be found.
        DatasetRefused: the dataset's tokens are to be kept, but its token ids are not those of the teacher's tokenizer.
        TrainingError: the teacher's layers cannot be copied, or its vocabulary cannot be cut.
    """
    quiet_transformers()
    check_start(recipe, student)
    torch.manual_seed(recipe.seed)
    init, trusted = student.init, student.trust_remote_code
    files = init_model_files(recipe, student)
    start: Start | None = None
    if init.config is not None:
        model = _fresh(recipe, student, files)
    else:
        model = load_weights(files.folder, dtype="auto", trust_remote_code=trusted)
        if init.from_ is not None:
            model, start = parts_of_teacher(recipe, student, files, model, labelled, progress)
    if init.vocabulary == "used":
        model, start = _write_cut(model, files, labelled, folder, start, trusted=trusted)
        start.write(folder)
        return model
    of_its_own = init.config is not None and "model_type" in init.config  # may reject the teacher's sampling settings
    write_model(model, files.folder, folder, trust_remote_code=trusted, sampling=not of_its_own)
    if start is not None:
        start.write(folder)
    return model


def _write_cut(
    model: PreTrainedModel,
    files: ModelFiles,
    labelled: Dataset | None,
    folder: Path,
    start: Start | None,
    *,
    trusted: bool,
) -> tuple[PreTrainedModel, Start]:
    """Write the model with only the tokens that the dataset uses, and return it with the record of their number."""
    assert labelled is not None  # `init.needs_dataset`
    with tempfile.TemporaryDirectory() as scratch:
        cut = cut_vocabulary(model, files, labelled, Path(scratch), trust_remote_code=trusted)
        write_model(cut.model, Path(scratch), folder, trust_remote_code=trusted)
    start = start or Start(teacher=files.name, dataset=labelled.manifest.label)
    return cut.model, start.model_copy(update={"vocabulary": (cut.kept, cut.of)})


def write_model(
    model: PreTrainedModel, source: Path, folder: Path, *, trust_remote_code: bool, sampling: bool = True
) -> None:
    """Write a model made from the one in `source`, with its tokenizer, as safetensors.

    With `sampling`, the source's generation_config.json is copied as a file: `save_pretrained` drops some settings and
    rejects others.
    """
    model.generation_config = token_ids_alone(model.generation_config)
    model.save_pretrained(folder)
    if sampling and (source / _GENERATION).is_file():
        _write_generation(model, source / _GENERATION, folder / _GENERATION)
    load_tokenizer(source, trust_remote_code=trust_remote_code).save_pretrained(folder)
    copy_vocabulary_map(source, folder)


def _write_generation(model: PreTrainedModel, source: Path, file: Path) -> None:
    """Copy the source's generation settings, except special token ids in which the model differs."""
    theirs = source.read_bytes()
    tokens = {name: value for name, value in model.generation_config.to_dict().items() if name.endswith("_token_id")}
    settings = json.loads(theirs)
    changed = {name: value for name, value in tokens.items() if value is not None and settings.get(name) != value}
    write_atomically(file, json.dumps(settings | changed, indent=2).encode() + b"\n" if changed else theirs)


def _fresh(recipe: Recipe, student: StudentSettings, files: ModelFiles) -> PreTrainedModel:
    """Build a model of the recipe's config with random weights, in float32 unless the config says otherwise."""
    config = fresh_config(recipe, student)
    trusted = student.trust_remote_code
    model = auto_class(config).from_config(config, dtype=config.dtype or torch.float32, trust_remote_code=trusted)
    teacher = read_config(files, "teacher.model", trust_remote_code=trusted)
    model.generation_config = special_tokens_for_config(files, teacher, student)
    return model
