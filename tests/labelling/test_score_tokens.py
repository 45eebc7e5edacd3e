"""Scoring exact tokens: they, and not the tokens of their text, are what the teacher is asked about and what is stored."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.store import Dataset
from stillhouse.errors import PromptError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.models.load import encode_prompt, load_language_model
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.records import Message, Prompt, TeacherIdentity
from stillhouse.teachers.base import AnswerSettings, Request
from tests.conftest import MakeRecipe

LABEL = {"mode": "score", "soft": {"k": 8}, "shard_size": 4}


def scoring(make: MakeRecipe, tmp_path: Path, rows: list[dict[str, Any]], **parts: Any) -> Recipe:
    file = tmp_path / "written.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make(**{"label": LABEL, **parts}).model_dump(mode="json", by_alias=True)
    recipe["prompts"] = {"source": str(file), "score_tokens": "tokens", "holdout": 0}
    return recipe_from(recipe, "test")


def row(prompt: str, *tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "tokens": tokens}


def labelled(recipe: Recipe) -> Dataset:
    return asyncio.run(label(recipe)).dataset


def test_the_labels_are_those_of_a_dense_pass(tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> None:
    """They are scored as they are, whatever tokens their text would have."""
    tokens = [40, 41, 9, 0]
    recipe = scoring(tiny_recipe, tmp_path, [row("Say it.", *tokens)], student=None)
    (stored,) = labelled(recipe).to_table("train").to_pylist()
    lm = load_language_model(tiny_model)
    prompt = encode_prompt(lm.tokenizer, (Message("user", "Say it."),))
    with torch.inference_mode():
        logits = lm.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1)[range(4), tokens]
    assert stored["completion_token_ids"] == tokens
    np.testing.assert_allclose(stored["completion_logprobs"], expected, atol=1e-4)
    assert stored["finish_reason"] == "stop"


def test_one_that_does_not_end_is_cut_off(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scoring(tiny_recipe, tmp_path, [row("Say it.", 40, 41)], student=None)
    assert labelled(recipe).to_table("train")["finish_reason"].to_pylist() == ["length"]


def test_each_completion_of_a_prompt_is_a_row_and_the_same_one_is_scored_once(
    scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = [row("one", 1, 2), row("one", 1, 3), row("one", 1, 2), row("two", 1, 2)]
    dataset = labelled(scoring(scripted_recipe, tmp_path, rows))
    assert dataset.manifest.rows == {"train": 3}
    assert dataset.manifest.duplicate_prompts == 1


def test_nothing_that_was_scored_is_scored_again(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = asyncio.run(label(scoring(scripted_recipe, tmp_path, [row("one", 1, 2), row("two", 3)])))
    more = asyncio.run(label(scoring(scripted_recipe, tmp_path, [row("one", 1, 2), row("two", 4)])))
    assert (first.sent, more.sent, more.reused) == (2, 1, 1)


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_different_tokens_have_different_keys(one: list[int], other: list[int]) -> None:
    settings = AnswerSettings(TeacherIdentity("scripted", "x"), None)
    prompt = Prompt((Message("user", "hello"),))
    keys = [Request(prompt, 0, settings, tuple(tokens)).key for tokens in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
    assert replace(Request(prompt, 0, settings), forced=",".join(map(str, one))).key not in keys


@pytest.mark.parametrize("tokens", [None, [], [-1], ["a"], "12", [1.5]])
def test_what_is_not_a_list_of_token_ids_is_refused(tokens: Any, scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scoring(scripted_recipe, tmp_path, [{"prompt": "one", "tokens": tokens}])
    with pytest.raises(PromptError, match=r"column 'tokens' of row 1 .* is not a list of token ids"):
        list(read_prompts(recipe.prompts))


def test_a_missing_column_is_named(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scoring(scripted_recipe, tmp_path, [{"prompt": "one", "token": [1]}])
    with pytest.raises(PromptError, match=r"prompts\.score_tokens is 'tokens': .* Did you mean 'token'"):
        list(read_prompts(recipe.prompts))


def test_tokens_of_another_tokenizer_end_the_run(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scoring(tiny_recipe, tmp_path, [row("one", 100_000)], student=None)
    with pytest.raises(TeacherUnavailable, match="a completion has the token 100000"):
        labelled(recipe)
