"""Refuse a sweep that could not be carried out before anything is sent or trained.

    check_sweep(recipe, check_student)

What settings alone say is refused when the recipe is loaded (config.py); here the teacher's config is read.
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
    """Check each student of a sweep, and that no two of them are the same; what several have wrong is told of the first.

    Args:
        recipe: has a sweep.
        check: looks at the recipe of one student.

    Raises:
        RecipeError: as `check` does, or two students are the same, or `at_a_time` cannot be done.
        TeacherUnavailable: as `check` does.
    """
    found = points(recipe)
    _check_at_a_time(recipe, found)
    faults: dict[str, StillhouseError] = {}
    sound = []
    for point in found:
        refused = faults_of(partial(check, point.recipe))
        for error in refused:
            faults.setdefault(str(error), error.within(f"sweep, {point.label}"))
        if not refused:
            sound.append(point)
    raise_all([*faults.values(), *faults_of(partial(_refuse_same_starts, sound))])


def _refuse_same_starts(found: Sequence[Point]) -> None:
    starts: dict[str, str] = {}
    for point in found:
        start = _start(point)
        if start in starts:
            raise RecipeError(
                f"sweep: `{starts[start]}` and `{point.label}` are the same student, with the same layers of the teacher: "
                "take one of the two values away"
            )
        starts[start] = point.label


def _check_at_a_time(recipe: Recipe, found: tuple[Point, ...]) -> None:
    at_a_time = recipe.sweep.at_a_time if recipe.sweep else 1
    if at_a_time == 1:
        return
    if any(point.student.launch is not None for point in found):
        raise RecipeError(
            f"sweep.at_a_time is {at_a_time} and student.launch is set, which has several processes train each student: "
            "set at_a_time to 1, or take student.launch away"
        )
    if ranks.processes() > 1:
        raise RecipeError(
            f"sweep.at_a_time is {at_a_time}, and {ranks.processes()} processes were started to train each student "
            "together: set at_a_time to 1, or start one process"
        )


def _start(point: Point) -> str:
    """A student's settings, with its layers listed where the teacher's config says which they are."""
    student = point.student
    shaping = student.shaping(student.mode)
    if student.init.layers is not None:
        from stillhouse.student.start.stacks import kept_layers
        from stillhouse.student.start.start_config import student_config

        try:
            config = student_config(before_finetuning(point.recipe), student)
        except TeacherUnavailable:  # it is looked at later
            return content_hash(shaping)
        kept = kept_layers(config, student.init.layers)
        if not student.init.measures_layers or all(len(one.layers) == one.stack.depth for one in kept):
            listed = {one.stack.name: one.layers for one in kept}
            chosen = {"choose"} | ({"rows"} if student.init.width is None else set())  # which says nothing any more
            shaping["init"] = {**shaping["init"], "layers": listed} | dict.fromkeys(chosen)
    return content_hash(shaping)
