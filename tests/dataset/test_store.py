"""A dataset on disk: readable by others, refused when it is not as it was written."""

import asyncio
import json
from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.manifest import FILE_NAME, read_manifest
from stillhouse.dataset.store import Dataset, all_datasets, find_dataset, open_dataset
from stillhouse.errors import DatasetMissing, DatasetRefused
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe


@pytest.fixture
def dataset(scripted_recipe: MakeRecipe) -> Dataset:
    return asyncio.run(label(scripted_recipe())).dataset


def soft_columns(dataset: Dataset) -> tuple[list[str], list[list[list[int]]]]:
    rows = [
        completion_at(batch, index)
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]
    return [row.id for row in rows], [row.trace.soft.token_ids.tolist() for row in rows if row.trace and row.trace.soft]


def test_the_folder_opens_with_the_datasets_library(dataset: Dataset, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(dataset.folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == dataset.manifest.rows
    row = loaded["train"][0]
    assert row["completion"][0]["role"] == "assistant"
    assert np.asarray(row["top_token_ids"]).shape == (row["completion_tokens"], 8)


def test_the_files_open_in_duckdb_and_polars(dataset: Dataset) -> None:
    ids, top = soft_columns(dataset)
    pattern = str(dataset.folder / "data/*.parquet")
    found = duckdb.sql(f"select id, top_token_ids, top_logprobs[1][1] from '{pattern}'").fetchall()
    assert {row[0]: row[1] for row in found} == dict(zip(ids, top, strict=True))
    assert all(row[2] == pytest.approx(np.log(0.5), abs=1 / 256) for row in found)
    frame = polars.read_parquet(pattern)
    assert dict(zip(frame["id"], frame["top_token_ids"].to_list(), strict=True)) == dict(zip(ids, top, strict=True))


def test_the_card_names_the_splits_that_there_are(dataset: Dataset) -> None:
    front = (dataset.folder / "README.md").read_text().split("---")[1]
    assert "data/train-*.parquet" in front
    assert "data/validation-*.parquet" in front


def test_names_that_a_person_types(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "labels"
    for name in ("words", "words/v001", str(dataset.folder), str(dataset.folder.parent)):
        assert find_dataset(root, name) == dataset
    assert all_datasets(root) == [dataset]
    with pytest.raises(DatasetMissing, match="finished datasets: words/v001"):
        find_dataset(root, "wrods")


def test_a_version_that_is_not_there(dataset: Dataset) -> None:
    with pytest.raises(DatasetMissing, match="has only the versions v001"):
        open_dataset(dataset.folder.parent, 7)


def test_nothing_labelled_yet(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match="Run `stillhouse label`"):
        open_dataset(tmp_path / "none")
    assert all_datasets(tmp_path / "none") == []


def test_without_its_manifest_a_version_does_not_exist(dataset: Dataset) -> None:
    (dataset.folder / FILE_NAME).unlink()
    with pytest.raises(DatasetMissing):
        read_manifest(dataset.folder)
    with pytest.raises(DatasetMissing):
        open_dataset(dataset.folder.parent)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(dataset: Dataset, damage: str) -> None:
    file = dataset.folder / dataset.manifest.files[1].path
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[40] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    assert len(dataset.problems()) == 1
    with pytest.raises(DatasetRefused, match=file.name):
        dataset.check()


def test_a_newer_format_is_refused(dataset: Dataset) -> None:
    file = dataset.folder / FILE_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(DatasetRefused, match=r"has format version 99, and this release reads version 1"):
        read_manifest(dataset.folder)


@pytest.mark.parametrize("content", ["{", "[" * 100_000], ids=["half", "nested too deeply"])
def test_a_manifest_that_is_not_json(dataset: Dataset, content: str) -> None:
    (dataset.folder / FILE_NAME).write_text(content)
    with pytest.raises(DatasetRefused, match="is damaged"):
        read_manifest(dataset.folder)


def test_the_manifest_says_where_every_row_came_from(dataset: Dataset, scripted_recipe: MakeRecipe) -> None:
    manifest = dataset.manifest
    assert manifest.teacher.kind == "scripted"
    assert Recipe.model_validate(manifest.recipe) == scripted_recipe()
    assert manifest.totals.completion_tokens == sum(
        completion_at(batch, index).completion_tokens
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    )
    assert manifest.totals.cost_usd == 0.0
