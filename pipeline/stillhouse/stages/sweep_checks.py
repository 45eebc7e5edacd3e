"""Checks of a sweep before anything is sent or trained.

    check_sweep(recipe, check_student)

Faults of settings alone are found when the recipe is loaded (recipe/recipe.py); these checks read the teacher's config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from stillhouse.errors import RecipeError, StillhouseError, TeacherUnavailable
from stillhouse.processes import ranks
from stillhouse.recipe.faults import faults_of, raise_all
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.sweep_points import Point, points
from stillhouse.records import content_hash
from stillhouse.stages.finetune import before_finetuning


def check_sweep(recipe: Recipe, check: Callable[[Recipe], None]) -> None:
    """Check each student of a sweep, and that no two are the same; a fault of several students is reported for the first.

    Args:
        recipe: has a sweep.
        check: checks the recipe of one student.

    Raises:
        RecipeError: `check` raises it, two students are the same, or `at_a_time` contradicts other settings.
        TeacherUnavailable: `check` raises it, and there is no other fault.
    """
    found = points(recipe)
    _check_at_a_time(recipe, found)
    faults: dict[str, StillhouseError] = {}
    valid = []
    for point in found:
        found_faults = faults_of(partial(check, point.recipe))
        for error in found_faults:
            faults.setdefault(str(error), error.within(f"sweep, {point.label}"))
        if not found_faults:
            valid.append(point)
    raise_all([*faults.values(), *faults_of(partial(_refuse_same_starts, valid))])


def _refuse_same_starts(found: Sequence[Point]) -> None:
    starts: dict[str, str] = {}
    for point in found:
        start = _start(point)
        if start in starts:
            raise RecipeError(
                f"`{starts[start]}` and `{point.label}` are the same student, with the same layers of the teacher",
                setting="sweep",
                fix="remove one of the two values",
            )
        starts[start] = point.label


def _check_at_a_time(recipe: Recipe, found: tuple[Point, ...]) -> None:
    at_a_time = recipe.sweep.at_a_time if recipe.sweep else 1
    if at_a_time == 1:
        return
    if any(point.student.launch is not None for point in found):
        raise RecipeError(
            "student.launch is set, so that several processes train each student",
            setting="sweep.at_a_time",
            value=at_a_time,
            fix="set at_a_time to 1, or remove student.launch",
        )
    if ranks.processes() > 1:
        raise RecipeError(
            f"{ranks.processes()} processes were started to train each student together",
            setting="sweep.at_a_time",
            value=at_a_time,
            fix="set at_a_time to 1, or start one process",
        )


def _start(point: Point) -> str:
    """Return a hash of a student's settings, with its layers listed if the teacher's config determines them."""
    student = point.student
    key_settings = student.key_settings(student.mode)
    if student.init.layers is not None:
        from stillhouse.student.start.stacks import kept_layers
        from stillhouse.student.start.start_config import student_config

        try:
            config = student_config(before_finetuning(point.recipe), student)
            kept = kept_layers(config, student.init.layers)
        except (RecipeError, TeacherUnavailable):  # the check of the start reports it
            return content_hash(key_settings)
        if not student.init.measures_layers or all(len(one.layers) == one.stack.depth for one in kept):
            listed = {one.stack.name: one.layers for one in kept}
            chosen = {"choose"} | ({"rows"} if student.init.width is None else set())  # they have no effect any more
            key_settings["init"] = {**key_settings["init"], "layers": listed} | dict.fromkeys(chosen)
    return content_hash(key_settings)
