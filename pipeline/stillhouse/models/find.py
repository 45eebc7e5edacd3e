"""Find the files of the models that a recipe names: a local folder, or a hub model, downloaded if it is not cached."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.models.checks import refuse_pickles
from stillhouse.models.files import SAFETENSORS, ModelFiles
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.teacher import TeacherSettings

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]  # a hub model's files without its weights


def find_model(
    name: str, revision: str | None = None, setting: str = "teacher.model", *, weights: bool = True
) -> ModelFiles:
    """Return the folder of a model: a local one, or a hub model's, downloaded if it is not in the cache.

    Without `weights`, only the config and the tokenizer of a hub model are downloaded, and a folder's weights go unchecked.

    Raises:
        RecipeError: no model is named, or its weights are not safetensors.
        TeacherUnavailable: no such folder or hub model exists, or the folder is not a model's.
    """
    if not name:
        raise RecipeError(
            "no model is named",
            setting=setting,
            value=name,
            fix="set it to a model's folder or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TeacherUnavailable(
                "the folder has no config.json",
                setting=setting,
                value=name,
                fix="set it to a folder that save_pretrained wrote",
            )
        files = ModelFiles(name, folder, revision)
    else:
        files = _from_hub(name, revision, setting, [*((SAFETENSORS,) if weights else ()), *_SMALL])
    if weights:
        refuse_pickles(files, setting)
    return files


def _from_hub(name: str, revision: str | None, setting: str, files: list[str]) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    fix = "check the path or the id"
    if "smollm2" in name.lower():
        fix += ", or run `stillhouse teacher fetch-demo`, which downloads the quickstart's teacher"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError:
        raise TeacherUnavailable(
            "no folder has this path, and it is not the id of a model on the Hugging Face hub",
            setting=setting,
            value=name,
            fix=fix,
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TeacherUnavailable(
            f"no folder has this path, and the Hugging Face hub has no such model or cannot be reached "
            f"({reason.rstrip('.')})",
            setting=setting,
            value=name,
            fix=fix,
        ) from error
    return ModelFiles(name, folder, folder.name)


def teacher_files(recipe: Recipe, *, weights: bool = True) -> ModelFiles:
    """Return the files of a recipe's teacher; `weights` as in `find_model`.

    Raises:
        RecipeError: the teacher has no files to take layers or a tokenizer from, no name, or no safetensors weights.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    if not has_local_files(recipe.teacher):
        raise RecipeError(
            f"the student starts from the teacher, but the files of a teacher of kind {recipe.teacher.kind!r} are not "
            "accessible",
            setting="student.init",
            fix="set it to {model: a folder or a hub id}",
        )
    return labelling_files(recipe.teacher, weights=weights)


def labelling_files(teacher: TeacherSettings, *, weights: bool = True) -> ModelFiles:
    """Return the files of the model that labels: `teacher.model`, or the result of `teacher.finetune`.

    Raises:
        RecipeError: no model is named, or its weights are not safetensors.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    if teacher.finetune is None:
        return find_model(teacher.model, teacher.revision, weights=weights)
    if not (Path(teacher.finetune.folder) / "config.json").is_file():
        raise TeacherUnavailable(
            f"the teacher has not been fine-tuned yet: {teacher.finetune.folder} does not exist",
            setting="teacher.finetune",
            fix="run `stillhouse finetune` with the same recipe first, or `stillhouse run`, which starts with it",
        )
    return find_model(teacher.finetune.folder, setting="teacher.finetune", weights=weights)


def init_model_files(recipe: Recipe, student: StudentSettings, *, weights: bool = True) -> ModelFiles:
    """Return the files that a student starts from: those of `student.init.model`, or the teacher's.

    A teacher that learns along with the student is the one before its fine-tuning.

    Raises:
        RecipeError: the model is not named, has no safetensors weights, or is a teacher without files.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    init = student.init
    if init.model is not None:
        return find_model(init.model, init.revision, student.setting("init.model"), weights=weights)
    weights = weights and init.config is None
    if recipe.learns_along:
        return find_model(recipe.teacher.model, recipe.teacher.revision, weights=weights)
    return teacher_files(recipe, weights=weights)


def has_local_files(teacher: TeacherSettings) -> bool:
    """Whether this kind of teacher is a model whose files are accessible."""
    return teacher.kind in {"transformers", "vllm", "ensemble"}  # of an ensemble those of its first model


def can_load_in_process(teacher: TeacherSettings) -> bool:
    """Whether the teacher can be loaded in this process: by its kind, or because a server's weights are on this machine."""
    return teacher.kind == "transformers" or (teacher.kind == "vllm" and Path(teacher.model).is_dir())
