"""A report stands for the teacher that it measured, for the rows, and for what shapes the answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.evaluate import settings_key
from stillhouse.evaluation.stored import report_key
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings

Labelled = tuple[Recipe, StudentSettings, Dataset]


def with_teacher(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=settings)})


def with_label(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"label": recipe.label.model_copy(update=settings)})


def key_of(recipe: Recipe, dataset: Dataset) -> str:
    return report_key(recipe, dataset, [], settings_key(recipe.evaluate))


def of_a_server(recipe: Recipe) -> Recipe:
    return with_teacher(recipe, kind="openai", model="gpt")


@pytest.mark.parametrize(
    "change",
    [
        of_a_server,
        lambda recipe: with_teacher(of_a_server(recipe), model="another"),
        lambda recipe: with_label(recipe, sampling=recipe.label.sampling.model_copy(update={"max_tokens": 13})),
        lambda recipe: with_label(recipe, mode="score"),
    ],
)
def test_another_teacher_or_other_answers_make_another_report(
    labelled: Labelled, change: Callable[[Recipe], Recipe]
) -> None:
    recipe, _, dataset = labelled
    keys = {
        key_of(one, dataset) for one in (recipe, change(recipe), with_teacher(recipe, kind="openai", model="third"))
    }
    assert len(keys) == 3


def test_a_teacher_with_other_weights_makes_another_report_and_one_that_was_moved_does_not(
    labelled: Labelled, tiny_model: Path, tmp_path: Path
) -> None:
    recipe, _, dataset = labelled
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    moved = with_teacher(recipe, model=str(copy))
    assert key_of(moved, dataset) == key_of(recipe, dataset)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert key_of(moved, dataset) != key_of(recipe, dataset)


def test_other_rows_of_the_same_plan_make_another_report(labelled: Labelled) -> None:
    recipe, _, dataset = labelled
    files = (dataset.manifest.files[0].model_copy(update={"sha256": "0" * 64}), *dataset.manifest.files[1:])
    other = dataclasses.replace(dataset, manifest=dataset.manifest.model_copy(update={"files": files}))
    assert key_of(recipe, other) != key_of(recipe, dataset)
