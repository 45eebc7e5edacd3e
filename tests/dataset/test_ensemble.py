"""Datasets of several teachers of the same completions, averaged with nothing asked again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.dataset.derive import filter_rows
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.ensemble import ensemble
from stillhouse.dataset.mixture import mix_top_k
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, UsageError
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.stages import distill_stage
from tests.conftest import MakeRecipe, make_tiny_model

Make = Callable[..., tuple[list[Dataset], Recipe]]


@pytest.fixture
def teachers(tiny_recipe: MakeRecipe, tmp_path: Path) -> Make:
    """Makes datasets of two teachers: the first wrote the completions, and the second scored them."""

    def make(soft: dict[str, Any]) -> tuple[list[Dataset], Recipe]:
        settings = {"sampling": {"temperature": 0.8, "max_tokens": 12}, "soft": soft, "shard_size": 5}
        first = tiny_recipe(label=settings)
        written = asyncio.run(label(first)).dataset
        other = {"kind": "transformers", "model": str(make_tiny_model(tmp_path / "second", seed=7))}
        prompts = {"source": str(written.folder), "score_tokens": "completion_token_ids", "holdout": 0.3}
        second = tiny_recipe(
            teacher=other,
            prompts=prompts,
            label={"mode": "score", "soft": soft, "shard_size": 3},
            dataset={"root": first.dataset.root, "name": "second"},
        )
        return [written, asyncio.run(label(second)).dataset], first

    return make


def labels(dataset: Dataset, split: Any = "train") -> list[tuple[Any, Any, Any]]:
    """The tokens, log-probabilities and soft labels of each row."""
    assert dataset.manifest.soft is not None
    encoding = find_encoding(dataset.manifest.soft.encoding)
    rows = dataset.to_table(split)
    return [
        (
            rows["completion_token_ids"][place].as_py(),
            rows["completion_logprobs"][place].as_py(),
            encoding.labels_at(rows, place),
        )
        for place in range(len(rows))
    ]


def test_every_row_has_the_mixture_of_both(teachers: Make, tmp_path: Path) -> None:
    both, _ = teachers({"k": 16})
    made = ensemble(both, tmp_path / "labels", "both", [3, 1])
    assert made.counts["left_out"] == 0
    assert made.dataset.problems() == []
    manifest = made.dataset.manifest
    assert manifest.rows == both[0].manifest.rows
    assert manifest.parents == ("words/v001", "second/v001")
    assert manifest.how == "0.75 words/v001 + 0.25 second/v001"
    assert [manifest.teacher, *manifest.more_teachers] == [one.manifest.teacher for one in both]
    for split in ("train", "validation"):
        by_tokens = {tuple(tokens): (logprobs, soft) for tokens, logprobs, soft in labels(both[1], split)}
        rows = zip(labels(made.dataset, split), labels(both[0], split), strict=True)
        for (tokens, logprobs, soft), (first_tokens, first_logprobs, first_soft) in rows:
            assert tokens == first_tokens
            second_logprobs, second_soft = by_tokens[tuple(tokens)]
            exact = 0.75 * np.exp(first_logprobs) + 0.25 * np.exp(second_logprobs)
            np.testing.assert_allclose(np.exp(logprobs), exact, rtol=1e-5)
            wanted = mix_top_k([first_soft, second_soft], [0.75, 0.25])
            assert (soft.token_ids == wanted.token_ids).all()
            np.testing.assert_allclose(np.exp(soft.logprobs), np.exp(wanted.logprobs), rtol=0.05)


def test_draws_are_pooled(teachers: Make, tmp_path: Path) -> None:
    both, _ = teachers({"encoding": "sampled", "draws": 20})
    made = ensemble(both, tmp_path / "labels", "both")
    assert made.dataset.manifest.soft is not None and made.dataset.manifest.soft.draws == 40
    for _, _, soft in labels(made.dataset):
        assert set(soft.draws.tolist()) == {40}


@pytest.mark.slow
def test_a_student_learns_from_it(teachers: Make, tmp_path: Path) -> None:
    both, recipe = teachers({"k": 16})
    ensemble(both, tmp_path / "labels", "both")
    recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"name": "both"})})
    assert recipe.student is not None
    from stillhouse.stages.stages import recipe_dataset

    result = distill_stage(recipe, recipe.student, recipe_dataset(recipe))
    assert result.card.dataset == "both/v001"
    assert result.card.held_out is not None


def test_rows_that_one_lacks_are_left_out(teachers: Make, tmp_path: Path) -> None:
    (first, second), _ = teachers({"k": 16})
    some = filter_rows(second, tmp_path / "labels", "some", "prompt_text LIKE '%e%'").dataset
    made = ensemble([first, some], tmp_path / "labels", "both")
    assert sum(made.dataset.manifest.rows.values()) == sum(some.manifest.rows.values())
    assert "left out: not in every version" in made.notes[0]


def test_what_cannot_be_averaged_is_refused(teachers: Make, scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    (first, second), _ = teachers({"k": 16})
    root = tmp_path / "labels"
    for given, words in (
        (([first, first], root, "both"), "Name two or more different versions"),
        (([first, second], root, "both", [1]), "--weights is '1': there are 2 datasets"),
        (([first, second], root, "both", [1, -1]), "--weights is '1,-1': weights must be positive"),
        (([first, second], root, "a/b"), "--into"),
    ):
        with pytest.raises(UsageError, match=words):
            ensemble(*given)
    text = {"root": str(root), "name": "text"}
    other = asyncio.run(label(scripted_recipe(label={"soft": {"k": 8}}, dataset=text))).dataset
    with pytest.raises(DatasetRefused, match="different tokenizers"):
        ensemble([first, other], root, "both")
    assert not (root / "both").exists()


def test_teachers_of_other_completions_are_refused(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    one = asyncio.run(label(tiny_recipe())).dataset
    again = tiny_recipe(dataset={"root": str(tmp_path / "labels"), "name": "again"}, seed=9)
    two = asyncio.run(label(again)).dataset
    with pytest.raises(DatasetRefused, match="no row of words/v001 has the same completion in again/v001"):
        ensemble([one, two], tmp_path / "labels", "both")
    assert not list((tmp_path / "labels/both").glob("v*"))
