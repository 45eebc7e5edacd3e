"""Whether a recipe can be labelled by batch jobs; before anything is sent or uploaded."""

from __future__ import annotations

from typing import cast

from stillhouse.errors import RecipeError
from stillhouse.labelling.batches.delivery import BatchTeacher
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import Teacher
from stillhouse.teachers.batches import Batches


def check_batches(recipe: Recipe, teacher: Teacher) -> BatchTeacher:
    """Return the teacher as one with batch jobs.

    Raises:
        RecipeError: it has none, or a setting cannot be used with them.
    """
    label = recipe.label
    if not isinstance(teacher, Batches):
        raise RecipeError(
            f"a teacher of kind {recipe.teacher.kind!r} has no batch jobs",
            setting="label.delivery",
            value=label.delivery,
            fix="set it to online, or use teacher.kind openai",
        )
    if label.runner.kind != "local":
        raise RecipeError(
            f"label.delivery is {label.delivery!r}, and batch jobs are submitted by one process",
            setting="label.runner.kind",
            value=label.runner.kind,
            fix="set it to local",
        )
    return cast(BatchTeacher, teacher)
