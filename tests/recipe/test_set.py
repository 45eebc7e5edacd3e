"""`--set`: versions as outputs show them, and paths into lists."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError
from stillhouse.labelling.engine import label
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.stages import recipe_dataset
from tests.conftest import MakeRecipe

RecipeFile = Callable[[Recipe], Path]


@pytest.mark.parametrize(
    ("given", "version"), [("v002", 2), ("2", 2), ("v1", 1), ("'002'", 2), ("v0010", 10), ("null", None)]
)
def test_a_version_may_be_written_as_outputs_show_it(
    scripted_recipe: MakeRecipe, recipe_file: RecipeFile, given: str, version: int | None
) -> None:
    recipe = load_recipe(recipe_file(scripted_recipe()), [f"dataset.version={given}"])
    assert recipe.dataset.version == version


@pytest.mark.parametrize("given", ["v", "v0", "vv1", "words/v002", "v-1"])
def test_an_invalid_version_is_rejected(scripted_recipe: MakeRecipe, recipe_file: RecipeFile, given: str) -> None:
    with pytest.raises(RecipeError, match=r"dataset\.version is "):
        load_recipe(recipe_file(scripted_recipe()), [f"dataset.version={given}"])


def test_the_dataset_of_such_a_version_is_found(
    labelled: tuple[Recipe, StudentSettings, Dataset], recipe_file: RecipeFile
) -> None:
    recipe, _, dataset = labelled
    named = load_recipe(recipe_file(recipe), ["dataset.version=v001"])
    assert recipe_dataset(named).manifest.plan_sha256 == dataset.manifest.plan_sha256
    assert asyncio.run(label(named)).fresh is False


QUALITY = [{"kind": "empty"}, {"kind": "length", "max_tokens": 3}, {"kind": "refusal"}]


def test_set_reaches_into_lists(scripted_recipe: MakeRecipe, recipe_file: RecipeFile) -> None:
    file = recipe_file(scripted_recipe(quality=QUALITY, evaluate={"metrics": ["exact-match"]}))
    recipe = load_recipe(
        file,
        ["quality.1.max_tokens=9", "quality.2={kind: repetition}", "quality.0.kind=refusal", "evaluate.metrics.0=chrf"],
    )
    kinds = [(one.kind, one.options) for one in recipe.quality]
    assert kinds == [("refusal", {}), ("length", {"max_tokens": 9}), ("repetition", {})]
    assert [one.kind for one in recipe.evaluate.metrics] == ["chrf"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "quality.3.kind=empty",
            "--set quality.3.kind=empty: quality has no entry 3: its entries are numbered from 0 to 2",
        ),
        (
            "quality.3={kind: empty}",
            "quality has no entry 3: its entries are numbered from 0 to 2. To add an entry, give the",
        ),
        ("quality.-1.kind=empty", "quality is a list, and '-1' is not the number of an entry"),
        ("quality.kind=empty", "quality is a list, and 'kind' is not the number of an entry"),
        ("evaluate.metrics.0.kind=x", "evaluate.metrics has no entry 0: it has no entries"),
        ("quality.1.kind.deep=1", "quality.1.kind is 'length', which is not a mapping of settings"),
    ],
)
def test_a_path_into_a_list_that_does_not_exist_is_rejected(
    scripted_recipe: MakeRecipe, recipe_file: RecipeFile, override: str, words: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe_file(scripted_recipe(quality=QUALITY)), [override])
    assert words in str(raised.value)
