"""What tests of a student's start share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from stillhouse.errors import RecipeError
from stillhouse.models.load import auto_class
from stillhouse.recipe.recipe import Recipe
from stillhouse.student.start.initialise import initialise
from stillhouse.student.start.start_config import check_start
from tests.conftest import MakeRecipe

Make = Callable[..., Recipe]


@pytest.fixture
def start(tiny_recipe: MakeRecipe) -> Make:
    """Makes recipes with this `student.init`; `teacher` is a folder, other keywords are settings of the student.

    A number of layers is taken evenly spaced, which needs no dataset, unless `init` says how to choose.
    """

    def make(init: dict[str, Any], teacher: Path | None = None, **settings: Any) -> Recipe:
        layers = init.get("layers")
        counts = [*layers.values()] if isinstance(layers, dict) else [layers]
        if any(isinstance(count, int) for count in counts):
            init = {"choose": "even", **init}
        parts = tiny_recipe().model_dump(mode="json", by_alias=True)
        parts["student"] |= {"init": init, **settings}
        parts["teacher"]["model"] = str(teacher or parts["teacher"]["model"])
        return tiny_recipe(student=parts["student"], teacher=parts["teacher"])

    return make


def made(recipe: Recipe, folder: Path) -> Any:
    """The untrained student's model."""
    assert recipe.student is not None
    initialise(recipe, recipe.student, folder)
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder)


def refused(recipe: Recipe) -> str:
    """What a recipe is refused with, from the teacher's and the start's files without their weights."""
    assert recipe.student is not None
    with pytest.raises(RecipeError) as caught:
        check_start(recipe, recipe.student)
    assert caught.value.exit_status == 2
    return str(caught.value)
