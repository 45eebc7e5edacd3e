"""Checks that a model's chat template renders its prompts, before anything is labelled or trained.

    check_teacher_template(recipe)
    check_student_template(recipe, student)

They refuse what the recipe causes: a template that does not parse or renders no prompt at all, and a system prompt that the
template does not support. A template that refuses some prompts is fine: labelling rejects those one by one. Only the
tokenizer is loaded, no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.dataset.columns import prompt_at
from stillhouse.dataset.reader import SplitReader
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, TemplateRefused
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import find_model, has_local_files, init_model_files, labelling_files
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_SYSTEM_PROMPT = 60  # characters of a system prompt in a message


def check_teacher_template(recipe: Recipe) -> None:
    """Refuse a teacher whose chat template renders none of the prompts, or refuses the recipe's system prompt.

    A server that applies the chat template itself is not checked.

    Raises:
        RecipeError: the chat template renders none of the prompts, or refuses the recipe's system prompt.
        PromptError: the prompts cannot be read.
        TeacherUnavailable: the model cannot be found.
    """
    teacher = recipe.teacher
    if not has_local_files(teacher):
        return
    trusted = teacher.options.get("trust_remote_code") is True
    files = _tokenizer_files(teacher)
    sources = [recipe.prompts]
    if teacher.finetune is not None and recipe.references is not None:
        sources.append(recipe.references)
    for source in sources:
        _check(files, "teacher.model", source, trusted=trusted)


def check_student_template(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a student whose chat template renders none of the prompts, or refuses the recipe's system prompt.

    A student without a model of its own (`student.init.model`) has the teacher's template and is not checked.

    Raises:
        RecipeError: the chat template renders none of the prompts, or refuses the recipe's system prompt.
        PromptError: the prompts cannot be read.
        TeacherUnavailable: the model cannot be found.
    """
    if student.init.model is None:
        return
    files = init_model_files(recipe, student, weights=False)
    sources = [recipe.prompts]
    if student.mode == "gold" and recipe.references is not None:
        sources.append(recipe.references)
    for source in sources:
        _check(files, student.setting("init.model"), source, trusted=student.trust_remote_code)


def check_template_on_rows(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> None:
    """Check a student's chat template against a dataset's rows: the source of the labelled prompts may no longer exist.

    Raises:
        RecipeError: the chat template renders none of the rows' prompts, or refuses the recipe's system prompt.
        TeacherUnavailable: the student's model cannot be found.
    """
    if student.init.model is None:
        return
    files = init_model_files(recipe, student, weights=False)
    if files.has_chat_template and (tokenizer := _load(files, trusted=student.trust_remote_code)) is not None:
        origin = f"dataset {dataset.manifest.label}"
        setting = student.setting("init.model")
        _refuse_unless_one_renders(tokenizer, files, setting, _prompts_of(dataset), origin, recipe.prompts.system)


def _prompts_of(dataset: Dataset) -> Iterator[Prompt]:
    reader = SplitReader(dataset, "train", ("prompt", "reference"))
    for number in range(len(reader.groups)):
        table = reader.read(number)
        yield from (prompt_at(table, row) for row in range(table.num_rows))


def _tokenizer_files(teacher: TeacherSettings) -> ModelFiles:
    """Return the files with the teacher's tokenizer; before fine-tuning they are those of the model that it starts from."""
    tuned = teacher.finetune
    if tuned is not None and not (Path(tuned.folder) / "config.json").is_file():
        return find_model(teacher.model, teacher.revision, weights=False)
    return labelling_files(teacher, weights=False)


def _check(files: ModelFiles, setting: str, source: PromptSettings, *, trusted: bool) -> None:
    if not files.has_chat_template:  # the messages' text is used as is
        return
    if (tokenizer := _load(files, trusted=trusted)) is not None:
        _refuse_unless_one_renders(tokenizer, files, setting, read_prompts(source), source.source, source.system)


def _load(files: ModelFiles, *, trusted: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer; None if it cannot be loaded, which the code that needs it reports."""
    from stillhouse.models.load import load_tokenizer

    try:
        return load_tokenizer(files.folder, trust_remote_code=trusted)
    except (ImportError, OSError, ValueError):
        return None


def _refuse_unless_one_renders(
    tokenizer: PreTrainedTokenizerBase,
    files: ModelFiles,
    setting: str,
    prompts: Iterable[Prompt],
    origin: str,
    system: str | None,
) -> None:
    """Read prompts up to the first one that the template renders.

    Args:
        tokenizer: the tokenizer that has the chat template.
        files: the model's files.
        setting: the setting that names the model, for the error.
        prompts: the prompts to render.
        origin: the source of the prompts, for the error.
        system: the system prompt that the recipe prepends.

    Raises:
        RecipeError: the template renders none of the prompts, or refuses one only for its system prompt.
    """
    reason, seen = "", 0
    for prompt in prompts:
        seen += 1
        refused = _refusal(tokenizer, prompt)
        if refused is None:
            return
        reason = reason or refused
        if _starts_with_system(prompt, system) and _refusal(tokenizer, _without_system(prompt)) is None:
            raise RecipeError(
                f"the chat template of {setting} ({files.name}) refuses a system prompt: {refused}",
                setting="prompts.system",
                value=(system or "")[:_MAX_SYSTEM_PROMPT],
                fix="remove it and put its text into prompts.template, or use a model whose chat template supports "
                "a system prompt",
            )
    if seen:
        raise RecipeError(
            f"its chat template renders none of the {seen:,} prompts of {origin}: {reason}",
            setting=setting,
            value=files.name,
            fix=f"correct the template ({_template_file(files)}) or the prompts, or use another model",
        )


def _starts_with_system(prompt: Prompt, system: str | None) -> bool:
    first = prompt.messages[0]
    return first.role == "system" and first.content == system and len(prompt.messages) > 1


def _without_system(prompt: Prompt) -> Prompt:
    return Prompt(prompt.messages[1:], prompt.reference)


def _refusal(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str | None:
    """Return why the chat template does not render a prompt; None if it does."""
    from stillhouse.models.load import encode_prompt

    try:
        encode_prompt(tokenizer, prompt.messages)
    except TemplateRefused as error:
        return str(error)
    return None


def _template_file(files: ModelFiles) -> Path:
    own = files.folder / "chat_template.jinja"
    return own if own.is_file() else files.folder / "tokenizer_config.json"
