"""Checks of `on_policy` before anything is labelled or trained."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import RecipeError
from stillhouse.models.find import can_load_in_process
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.rounds.recipes import on_policy_of, round_student, scoring_label
from stillhouse.teachers.base import open_teacher


def check_on_policy(recipe: Recipe) -> None:
    """Check that the teacher can score what the student writes, and that the student can learn from it.

    Raises:
        RecipeError: the teacher cannot score token ids, or the loss or the training arguments of the rounds are wrong.
    """
    if recipe.on_policy is None:
        return
    from stillhouse.student.training.arguments import training_arguments
    from stillhouse.student.training.objective import load_objective

    label = scoring_label(recipe)
    open_teacher(recipe.teacher, label, recipe.seed)
    if on_policy_of(recipe).teacher_share > 0:
        _check_mixture(recipe)
    student = round_student(recipe, on_policy_of(recipe))
    if on_policy_of(recipe).prompts_from == "newest" and student.init.vocabulary == "used":
        raise RecipeError(
            "student.init.vocabulary is 'used', so the student has only the tokens of the version that it learns from",
            setting="on_policy.prompts_from",
            value="newest",
            fix="remove it, or set student.init.vocabulary to all",
        )
    if student.loss.kind == "minillm" and student.labels == "live":
        raise RecipeError(
            "student.labels is 'live', and this loss needs the stored scores of the written tokens",
            setting="on_policy.loss.kind",
            value=student.loss.kind,
            fix="set student.labels to stored, or this to reverse-kl",
        )
    load_objective(student, encoding_of(label.soft))
    training_arguments(recipe, student, Path(recipe.students))


def _check_mixture(recipe: Recipe) -> None:
    """Refuse a teacher that cannot take part in what the student writes."""
    assert recipe.student is not None
    reason = None
    if not can_load_in_process(recipe.teacher):
        reason = f"the teacher has to run in this process, and teacher.kind {recipe.teacher.kind!r} does not"
    elif recipe.student.init.vocabulary == "used":
        reason = "student.init.vocabulary is 'used', and the teacher reads its own token ids, of which it has only some"
    if reason is not None:
        raise RecipeError(
            reason, setting="on_policy.teacher_share", value=on_policy_of(recipe).teacher_share, fix="set it to 0"
        )
