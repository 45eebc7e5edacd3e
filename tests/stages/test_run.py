"""A whole run in one process: what stops it between its stages."""

from typing import Any

import pytest

from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages import stages
from stillhouse.stages.stages import run_stages
from tests.conftest import MakeRecipe


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"quality": [{"kind": "regex", "pattern": "(?s)^.", "reject": True}]},
            r"prompts\.holdout is 0\.3: dataset words/v001 has no validation rows to measure on: all \d+ answers to "
            r"held-out prompts were rejected\. Loosen `quality`, or set it to a larger share",
        ),
        (
            {"holdout": 0},
            r"prompts\.holdout is 0\.0: dataset words/v001 has no validation rows to measure on\. Set it to a larger share",
        ),
    ],
)
def test_a_run_without_held_out_rows_stops_before_it_trains(
    tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], message: str
) -> None:
    def distilled(*_: object) -> None:
        raise AssertionError("the students are trained")

    monkeypatch.setattr(stages, "distill_students", distilled)
    recipe: Recipe = tiny_recipe(quality=parts.get("quality", []))
    if "holdout" in parts:
        recipe = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"holdout": 0.0})})
    with pytest.raises(RecipeError if "holdout" in parts else DatasetRefused, match=message):
        run_stages(recipe)
