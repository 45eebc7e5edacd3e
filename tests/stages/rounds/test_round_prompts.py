"""The prompts of a round: of the dataset's training split alone, other ones each round, all before any comes again."""

import asyncio

import pytest

from stillhouse.dataset.derive import filter_rows
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.labelling.engine import label
from stillhouse.stages.rounds.prompts import prompts_of_round
from tests.conftest import MakeRecipe


@pytest.fixture
def labelled(scripted_recipe: MakeRecipe) -> Dataset:
    return asyncio.run(label(scripted_recipe())).dataset


def ids(labelled: Dataset, number: int, count: int, seed: int = 0) -> list[str]:
    return [prompt.id for prompt in prompts_of_round(labelled, seed, number, count)]


def training_ids(labelled: Dataset) -> set[str]:
    return set(labelled.to_table("train")["prompt_id"].to_pylist())


def test_all_have_their_turn_before_any_comes_again(labelled: Dataset) -> None:
    first, second, third = (ids(labelled, number, 3) for number in (1, 2, 3))
    assert len({*first, *second, *third}) == 9
    assert {*first, *second, *third} == training_ids(labelled)
    assert ids(labelled, 1, 3) == first


def test_a_round_has_no_more_than_there_are(labelled: Dataset) -> None:
    assert set(ids(labelled, 1, 500)) == set(ids(labelled, 2, 500)) == training_ids(labelled)


def test_another_seed_has_another_order(labelled: Dataset) -> None:
    assert any(ids(labelled, 1, 3, seed=0) != ids(labelled, 1, 3, seed=seed) for seed in (1, 2, 3))


def test_none_to_train_on_is_refused(labelled: Dataset) -> None:
    names = ", ".join(f"'{id_}'" for id_ in labelled.to_table("validation")["prompt_id"].to_pylist())
    root = labelled.folder.parent.parent
    held_out = filter_rows(labelled, root, "held-out", f"prompt_id in ({names})").dataset
    with pytest.raises(DatasetRefused, match="has no training row"):
        prompts_of_round(held_out, 0, 1, 4)
