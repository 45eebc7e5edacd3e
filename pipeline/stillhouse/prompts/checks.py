"""Check a recipe's prompts before anything is labelled or trained.

    >>> check_prompts(recipe)                # reads them as far as needed
    >>> PromptChecks(recipe).are_done()      # this recipe needs no check; else labelling/plan.py checks while it reads
    True

Prompts need references if a model is trained on them, scored along them or measured by them. They need a task prefix
("summarize: ") if the teacher is a multi-task model such as T5, whose config lists prefixes in `task_specific_params`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.errors import PromptError, RecipeError
from stillhouse.models.find import find_model
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Prompt

_SHOWN_CHARACTERS = 60  # characters of a prompt shown in an error message


@dataclass(frozen=True)
class _Need:
    """Why references are needed, and the fix that avoids the need; both are parts of an error message."""

    reason: str
    fix: str


def check_prompts(recipe: Recipe) -> None:
    """Check the prompts in at most one pass, and those of `references`, if the recipe sets it, in another.

    Raises:
        PromptError: a prompt lacks a reference that the recipe needs, or the recipe's task prefix.
        RecipeError: the first prompt begins with none of the task prefixes in the teacher's config.
        TeacherUnavailable: the teacher's config cannot be found.
    """
    check_references(recipe)
    _read(recipe.prompts, PromptChecks(recipe))


def check_references(recipe: Recipe) -> None:
    """Check the prompts of `references`, if a model learns from them; raises what `check_prompts` raises."""
    if recipe.references is not None and _learning_needs(recipe):
        _read(recipe.references, PromptChecks(recipe, "references"))


def _read(settings: PromptSettings, checks: PromptChecks) -> None:
    """Read prompts until the last one that must be checked."""
    if checks.are_done():
        return
    for number, prompt in enumerate(read_prompts(settings), start=1):
        checks.check(number, prompt)
        if checks.are_done():
            return
    checks.finish()


class PromptChecks:
    """Checks of one part of a recipe, applied to its prompts while something else reads them.

    Call `check` with every prompt, and `finish` after the last. `part` is "prompts" or "references".
    """

    def __init__(self, recipe: Recipe, part: Literal["prompts", "references"] = "prompts") -> None:
        learnt = _learning_needs(recipe)
        need = learnt if part == "references" or recipe.references is None else None
        if part == "prompts":
            need = need or _scoring_needs(recipe)
        self._recipe = recipe
        self._part = part
        self._settings = recipe.prompts if part == "prompts" else recipe.gold_prompts
        self._need = need  # why every prompt needs a reference
        self._wanted = _metrics_need(recipe) if part == "prompts" and need is None else None  # why at least one does
        self._prefix = recipe.teacher.task_prefix
        self._known_prefixes = _known_prefixes(recipe.teacher)  # of which the first prompt begins with one

    def are_done(self) -> bool:
        """Whether the prompts that follow need no check."""
        return not (self._need or self._wanted or self._prefix or self._known_prefixes)

    def check(self, number: int, prompt: Prompt) -> None:
        """Check one prompt; `number` is its row.

        Raises:
            PromptError: it lacks a reference that the recipe needs, or the recipe's task prefix.
            RecipeError: it is the first and begins with none of the task prefixes in the teacher's config.
        """
        settings, part = self._settings, self._part
        if self._known_prefixes:
            if not _text(prompt).startswith(tuple(self._known_prefixes)):
                raise _missing_prefix(self._recipe, settings, part, prompt, self._known_prefixes)
            self._known_prefixes = ()
        if self._prefix and not _text(prompt).startswith(self._prefix):
            raise PromptError(
                f"the prompt of row {number} of {settings.source} ({_text(prompt)[:_SHOWN_CHARACTERS]!r}) does not begin "
                "with it",
                setting="teacher.task_prefix",
                value=self._prefix,
                fix=f'add it at the start of {part}.template ({settings.template}), or set teacher.task_prefix to ""',
            )
        if prompt.reference is not None:
            self._wanted = None
        elif self._need:
            raise PromptError(
                f"{self._need.reason}, so every row needs a reference, and row {number} of {settings.source} has none",
                setting=f"{part}.reference",
                value=settings.reference,
                fix=f"fill its column {settings.reference or 'reference'!r}, set {part}.reference to another column, "
                f"or {self._need.fix}",
            )

    def finish(self) -> None:
        """Check what only all prompts together show.

        Raises:
            PromptError: no prompt has a reference, and the recipe's metrics need some.
        """
        if self._wanted:
            settings, part = self._settings, self._part
            column = settings.reference or "reference"
            raise PromptError(
                f"{self._wanted.reason}, which needs references, and no row of {settings.source} has one in the column "
                f"{column!r}",
                setting=f"{part}.reference",
                value=settings.reference,
                fix=f"set {part}.reference to the column with the references, or {self._wanted.fix}",
            )


def _learning_needs(recipe: Recipe) -> _Need | None:
    if recipe.teacher.finetune is not None:
        return _Need("teacher.finetune is set", "remove teacher.finetune")
    if recipe.student is not None and recipe.student.mode == "gold":
        return _Need("student.mode is 'gold'", "set student.mode to 'black-box'")
    if recipe.needs_gold:
        return _Need("evaluate.baselines has 'gold'", "remove it from evaluate.baselines")
    return None


def _scoring_needs(recipe: Recipe) -> _Need | None:
    if recipe.label.mode != "score" or recipe.prompts.score_tokens is not None:
        return None
    return _Need("label.mode is 'score'", "set label.mode to 'generate'")


def _metrics_need(recipe: Recipe) -> _Need | None:
    return _Need("evaluate.metrics is set", "remove evaluate.metrics") if recipe.evaluate.metrics else None


def _known_prefixes(teacher: TeacherSettings) -> Sequence[str]:
    """Return the task prefixes in the teacher's config; empty if the recipe sets its own, or the weights are fresh."""
    fresh = teacher.finetune is not None and teacher.finetune.config is not None
    if teacher.kind != "transformers" or teacher.task_prefix is not None or fresh:
        return ()
    files = find_model(teacher.model, teacher.revision, weights=False)
    if files.chat_template_sha256 is not None:
        return ()
    tasks = files.config.get("task_specific_params") or {}
    prefixes = [task.get("prefix") for task in tasks.values() if isinstance(task, dict)]
    return [prefix for prefix in prefixes if prefix]


def _text(prompt: Prompt) -> str:
    """Return a prompt as plain text, as a model without a chat template reads it."""
    return "\n".join(message.content for message in prompt.messages)


def _missing_prefix(
    recipe: Recipe, settings: PromptSettings, part: str, prompt: Prompt, known: Sequence[str]
) -> RecipeError:
    return RecipeError(
        f"the first prompt ({_text(prompt)[:_SHOWN_CHARACTERS]!r}) does not begin with a task prefix, and "
        f"{recipe.teacher.model} was trained with the prefixes {', '.join(map(repr, known))}",
        setting=f"{part}.template",
        value=settings.template,
        fix='begin the template with one of them, or set teacher.task_prefix to another prefix, or to "" for none',
    )
