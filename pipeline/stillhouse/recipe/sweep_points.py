"""The students of a sweep, each an ordinary recipe.

    for point in points(recipe):
        distill_stage(point.recipe, point.student, dataset)     # data/students/quickstart-layers-16/white-box/

A point's recipe is the one that `--set student.init.layers=16 --set name=quickstart-layers-16` would give: its student lies
where that one would lie, and either finds what the other trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import StudentSettings


@dataclass(frozen=True)
class Point:
    """One student of a sweep."""

    settings: dict[str, Any]  # dotted path -> value
    label: str  # "16 layers"
    recipe: Recipe  # without a sweep, under a name of its own

    @property
    def student(self) -> StudentSettings:
        """The settings of the student that is trained."""
        assert self.recipe.student is not None  # a recipe with a sweep and no student is refused
        return self.recipe.student


def points(recipe: Recipe) -> tuple[Point, ...]:
    """The students of a recipe's sweep, in the order of its values; none where it has no sweep.

    Raises:
        RecipeError: a value is wrong, in a recipe that was changed after it was loaded.
    """
    if recipe.sweep is None:
        return ()
    try:
        return tuple(Point(one.settings, one.label, recipe.at(one)) for one in recipe.sweep.grid())
    except ValueError as error:
        raise RecipeError(str(error)) from None
