"""A version may be named without the zeros that its folder's name has."""

from pathlib import Path

import pytest

from stillhouse.dataset.catalog import find_versions
from stillhouse.dataset.store import Dataset, find_dataset
from stillhouse.errors import DatasetMissing
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings

Labelled = tuple[Recipe, StudentSettings, Dataset]


@pytest.mark.parametrize("version", ["v001", "v1", "v01", "v0001", "v1/"])
def test_a_version_is_found_by_its_number(labelled: Labelled, version: str) -> None:
    recipe, _, dataset = labelled
    root = Path(recipe.dataset.root)
    assert find_dataset(root, f"words/{version}") == dataset
    assert find_dataset(Path("elsewhere"), f"{root / 'words'}/{version}") == dataset
    assert [one.label for one in find_versions(root, f"words/{version}")] == ["words/v001"]


@pytest.mark.parametrize("label", ["words/v2", "words/v", "words/vone", "v1"])
def test_what_is_not_there_is_not_found(labelled: Labelled, label: str) -> None:
    with pytest.raises(DatasetMissing, match=f"the dataset '{label}' does not exist, .* finished datasets: words/v001"):
        find_dataset(Path(labelled[0].dataset.root), label)
