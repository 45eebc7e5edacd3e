"""The prompts of a round: of the dataset's training split alone, other ones each round, all before any comes again."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from stillhouse.dataset.derive import filter_rows
from stillhouse.dataset.store import Dataset, open_dataset
from stillhouse.errors import DatasetRefused
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.rounds.prompts import newest_prompts_of_round, prompts_of_round
from stillhouse.stages.rounds.recipes import round_folder
from stillhouse.stages.stages import run_stages
from tests.conftest import MakeRecipe
from tests.stages.rounds.test_rounds import on_policy, rollouts


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


def test_a_round_that_begins_a_new_pass_has_as_many_and_none_twice(labelled: Dataset) -> None:
    rounds = [ids(labelled, number, 5) for number in (1, 2, 3, 4)]
    assert all(len(set(one)) == len(one) == 5 for one in rounds)
    counts = Counter(id_ for one in rounds for id_ in one)
    assert set(counts.values()) <= {2, 3}  # 20 turns of 9 prompts


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


def growing(recipe: Recipe, limit: int | None) -> Recipe:
    """The recipe with the first prompts of its source, which learns from the first version of its dataset."""
    prompts = recipe.prompts.model_copy(update={"limit": limit})
    dataset = recipe.dataset.model_copy(update={"version": 1})
    return recipe.model_copy(update={"prompts": prompts, "dataset": dataset})


def newest_ids(recipe: Recipe, number: int) -> set[str]:
    return {
        prompt.id for prompt in newest_prompts_of_round(recipe, number, round_folder(recipe, number) / "rollouts-1")
    }


def test_what_the_newest_version_added_has_its_turn_first_and_a_begun_round_keeps_its_prompts(
    scripted_recipe: MakeRecipe,
) -> None:
    recipe = scripted_recipe(on_policy={"rounds": 3, "prompts": 4}, student={"init": {"from": "teacher", "layers": 2}})
    before = training_ids(asyncio.run(label(growing(recipe, 7))).dataset)
    first = newest_ids(recipe, 1)
    assert first == before or (len(first) == 4 and first < before)
    after = training_ids(asyncio.run(label(growing(recipe, None))).dataset)
    assert before < after
    assert newest_ids(recipe, 1) == first
    second, third = newest_ids(recipe, 2), newest_ids(recipe, 3)
    assert len(second) == 4 and not first & second
    assert after <= first | second | third


@pytest.mark.slow
def test_a_student_is_given_more_rounds_with_what_the_source_has_added(tiny_recipe: MakeRecipe) -> None:
    recipe = on_policy(tiny_recipe, rounds=1, prompts=8, prompts_from="newest")
    *_, one = run_stages(growing(recipe, 8)).students
    more = on_policy(tiny_recipe, rounds=2, prompts=8, prompts_from="newest")
    ran = run_stages(growing(more, None))
    assert ran.labelled.dataset.manifest.version == 2
    *_, white_box, last = ran.students
    assert (one.trained, white_box.trained, last.trained) == (True, False, True)
    assert white_box.card.dataset == "words/v001"
    known = training_ids(open_dataset(Path(more.dataset.root) / "words", 1))
    written = [training_ids(rollouts(more, number)) for number in (1, 2)]
    assert written[0] <= known
    assert training_ids(ran.labelled.dataset) - known <= written[1]
