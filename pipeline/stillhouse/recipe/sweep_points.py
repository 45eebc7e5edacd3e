"""The students of a sweep, each as an ordinary recipe.

    for point in points(recipe):
        distill_stage(point.recipe, point.student, dataset)     # data/students/quickstart-layers-16/white-box/

A point's recipe equals the recipe with `--set student.init.layers=16 --set name=quickstart-layers-16`: both use the same
student folder, so either reuses a student that the other trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings


@dataclass(frozen=True)
class Point:
    """One student of a sweep."""

    settings: dict[str, Any]  # dotted path -> value
    label: str  # "16 layers"
    recipe: Recipe  # without a sweep, with its own name

    @property
    def student(self) -> StudentSettings:
        """The student's settings."""
        assert self.recipe.student is not None  # a recipe with a sweep must have a student
        return self.recipe.student


def points(recipe: Recipe) -> tuple[Point, ...]:
    """Return the students of a recipe's sweep, in grid order; empty if the recipe has no sweep.

    Raises:
        RecipeError: a value is wrong, because the recipe was changed after it was loaded.
    """
    if recipe.sweep is None:
        return ()
    return tuple(Point(one.settings, one.label, recipe.for_point(one)) for one in recipe.sweep.grid())
