"""The prompts of a round: of the training split alone, other ones each round, all before any comes again."""

import json
from pathlib import Path

import pytest

from stillhouse.errors import PromptError
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.rounds.prompts import prompts_of_round
from tests.conftest import MakeRecipe


def training_ids(recipe: Recipe) -> set[str]:
    return {one.id for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "train"}


def ids(recipe: Recipe, number: int, count: int) -> list[str]:
    return [prompt.id for prompt in prompts_of_round(recipe, number, count)]


def test_all_have_their_turn_before_any_comes_again(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe()
    all_of_them = training_ids(recipe)
    first, second, third = (ids(recipe, number, 3) for number in (1, 2, 3))
    assert len({*first, *second, *third}) == 9 == len(all_of_them)
    assert {*first, *second, *third} == all_of_them
    assert ids(recipe, 1, 3) == first


def test_a_round_has_no_more_than_there_are(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe()
    assert set(ids(recipe, 1, 500)) == set(ids(recipe, 2, 500)) == training_ids(recipe)


def test_another_seed_has_another_order(scripted_recipe: MakeRecipe) -> None:
    assert any(ids(scripted_recipe(seed=0), 1, 3) != ids(scripted_recipe(seed=seed), 1, 3) for seed in (1, 2, 3))


def test_new_prompts_of_the_source_take_part(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scripted_recipe()
    before = training_ids(recipe)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write("".join(json.dumps({"word": f"word {number}"}) + "\n" for number in range(8)))
    assert set(ids(recipe, 2, 500)) == training_ids(recipe) > before


def test_none_to_train_on_is_refused(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scripted_recipe()
    held_out = [one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) != "train"]
    words = [{"word": one.messages[0].content.removeprefix("Explain ").removesuffix(".")} for one in held_out]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(word) + "\n" for word in words))
    with pytest.raises(PromptError, match=r"prompts\.holdout is 0\.3: all prompts are held out"):
        prompts_of_round(recipe, 1, 4)
