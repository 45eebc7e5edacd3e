"""`import stillhouse`: what the library is, inside an event loop too."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stillhouse
from stillhouse.dataset.arrays import soft_labels
from stillhouse.errors import DatasetMissing, DatasetRefused, RecipeError, StudentMissing, UsageError
from tests.conftest import MakeRecipe


def test_importing_it_imports_nothing_heavy_and_changes_no_logger() -> None:
    probe = (
        "import logging, sys; before = {**logging.root.manager.loggerDict}; import stillhouse; "
        "print(sorted({'torch', 'transformers', 'prefect', 'pyarrow', 'pydantic', 'numpy', 'matplotlib'} "
        "& {*sys.modules})); "
        "print(logging.root.manager.loggerDict == before)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


@pytest.mark.parametrize("name", stillhouse.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(stillhouse, name)
    if name not in ("__version__", "RecipeLike", "Loss", "Filter"):
        assert value.__doc__
    assert name in dir(stillhouse)


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    source = Path(stillhouse.__file__).read_text("utf-8")
    for name, module in stillhouse._MODULES.items():
        assert hasattr(import_module(module), "Divergence" if name == "Loss" else name)
        assert f"from {module} import" in source
    assert {*stillhouse._MODULES, "__version__"} == {*stillhouse.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'lable'"):
        stillhouse.lable  # noqa: B018


# ---------------------------------------------------------------------------------------------------------------- recipes


def test_a_recipe_is_built_in_python_as_in_a_file(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    raw = scripted_recipe().model_dump(mode="json", by_alias=True)
    recipe = stillhouse.load_recipe(raw)
    file = tmp_path / "own.yaml"
    file.write_text(recipe.as_yaml())
    assert stillhouse.load_recipe(file) == stillhouse.load_recipe(str(file)) == stillhouse.load_recipe(recipe) == recipe
    other = stillhouse.load_recipe(raw, {"label.samples": 3, "quality": [{"kind": "empty"}]})
    assert (other.label.samples, other.quality[0].kind) == (3, "empty")
    assert other == stillhouse.load_recipe(file, ["label.samples=3", "quality=[{kind: empty}]"])
    assert raw == scripted_recipe().model_dump(mode="json", by_alias=True)


def test_a_wrong_setting_is_named(scripted_recipe: MakeRecipe) -> None:
    raw = scripted_recipe().model_dump(mode="json", by_alias=True)
    with pytest.raises(RecipeError, match=r"label.sample: there is no such setting. Did you mean 'samples'\?"):
        stillhouse.load_recipe(raw, {"label.sample": 3})


# ----------------------------------------------------------------------------------------------------------------- stages


def silent(*_: Any) -> None:
    pass


@pytest.mark.parametrize("source", [None, 3, ["name: x"]])
def test_what_is_no_recipe_is_refused(source: Any) -> None:
    with pytest.raises(RecipeError, match=r"is not a recipe\. Give a path, a mapping of settings, or a recipe"):
        stillhouse.load_recipe(source)


def test_labels_inside_a_running_event_loop(scripted_recipe: MakeRecipe) -> None:
    async def cell() -> tuple[Any, Any]:
        ticks = 0

        async def ticking() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        first = stillhouse.label(scripted_recipe(), progress=silent)
        beside = asyncio.create_task(ticking())
        second = await stillhouse.label_async(scripted_recipe(), progress=silent)
        beside.cancel()
        return (first, second), ticks

    (first, second), ticks = asyncio.run(cell())
    assert (first.sent, second.sent, second.fresh) == (12, 0, False)
    assert ticks > 1


def test_an_error_comes_out_of_the_other_thread(scripted_recipe: MakeRecipe) -> None:
    async def cell() -> None:
        stillhouse.label(scripted_recipe(label={"runner": {"kind": "work-pool"}}), progress=silent)

    with pytest.raises(RecipeError, match="label.runner.kind is 'work-pool'"):
        asyncio.run(cell())


def test_a_plan_can_be_printed(scripted_recipe: MakeRecipe) -> None:
    lines = str(stillhouse.plan(scripted_recipe())).splitlines()
    assert lines[0].split() == ["prompts", "12"]
    assert "12 to send" in lines[1]


def test_bars_are_shown_where_no_progress_is_given(
    scripted_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    stillhouse.label(scripted_recipe())
    assert "12/12" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_way_in_a_notebook(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Inside an event loop; and the student that comes out of it answers."""
    recipe = tiny_recipe()

    async def cells() -> Any:
        students = stillhouse.run(recipe, progress=silent).students
        assert not any(one.trained for one in await stillhouse.distill_async(recipe, progress=silent))
        return students, await stillhouse.evaluate_async(recipe, progress=silent)

    students, evaluation = asyncio.run(cells())
    assert evaluation.report.models
    own = stillhouse.open_student(recipe.name, root=recipe.students)
    assert own.card.key == students[-1].card.key
    two = own.answer(["Explain fire.", [{"role": "user", "content": "Explain ice."}]], max_tokens=5)
    assert two[0] == own.answer("Explain fire.", max_tokens=5)
    assert two[1] == stillhouse.open_student(own.folder).answer(
        [{"role": "user", "content": "Explain ice."}], max_tokens=5
    )
    drawn = own.answer(["Explain fire.", "Explain ice."], temperature=1.0, seed=3)
    assert drawn == own.answer(["Explain fire.", "Explain ice."], temperature=1.0, seed=3)
    with pytest.raises(StudentMissing, match="Run `stillhouse distill` first"):
        stillhouse.open_student("nobody", root=tmp_path)


# --------------------------------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize("soft", [{"k": 4}, {"encoding": "sampled", "draws": 20}], ids=["top-k", "sampled"])
def test_soft_labels_as_arrays(soft: dict[str, Any], tiny_recipe: MakeRecipe) -> None:
    raw = tiny_recipe().model_dump(mode="json", by_alias=True)
    raw["label"] |= {"soft": soft}
    dataset = stillhouse.label(raw, progress=silent).dataset
    rows = list(dataset.rows("train"))
    found = list(soft_labels(dataset, "train"))
    assert [one.id for one in found] == [row["id"] for row in rows]
    for labels, row in zip(found, rows, strict=True):
        assert labels.completion_token_ids.tolist() == row["completion_token_ids"]
        ids, logprobs = labels.sparse()
        dense, spread = labels.dense(), labels.dense(spread_tail=True)
        size = dataset.manifest.teacher.vocabulary_size
        assert dense.shape == spread.shape == (len(row["completion_token_ids"]), size)
        for position in range(len(dense)):
            expected = np.zeros(size or 0)
            for one, logprob in zip(ids[position], logprobs[position], strict=True):
                if one >= 0:
                    expected[one] = np.exp(logprob)
            np.testing.assert_allclose(dense[position], expected, atol=1e-6)
            tail = np.exp(labels.tail_logprob[position])
            assert dense[position].sum() + tail == pytest.approx(1, abs=0.01)
            assert spread[position].sum() == pytest.approx(1, abs=0.01)
            listed = ids[position][ids[position] >= 0]
            np.testing.assert_allclose(
                np.delete(spread[position], listed), tail / ((size or 0) - len(listed)), atol=1e-6
            )
    with pytest.raises(DatasetRefused, match="vocabulary_size is 3"):
        found[0].dense(3)


def test_a_dataset_as_tables(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scripted_recipe()
    dataset = stillhouse.label(recipe, progress=silent).dataset
    for split in ("train", "validation"):
        rows = list(dataset.rows(split))
        assert dataset.to_table(split).to_pylist() == rows
        assert dataset.to_polars(split)["id"].to_list() == [row["id"] for row in rows]
        assert dataset.to_hf(split)["id"] == [row["id"] for row in rows]
    raw = recipe.model_dump(mode="json", by_alias=True)
    text = stillhouse.label(stillhouse.load_recipe(raw, {"label.soft": None, "dataset.name": "text"}), progress=silent)
    with pytest.raises(DatasetRefused, match="has no soft labels"):
        next(soft_labels(text.dataset))
    assert stillhouse.open_dataset("words/v1", root=recipe.dataset.root).manifest == dataset.manifest
    assert stillhouse.open_dataset(dataset.folder).manifest == dataset.manifest
    with pytest.raises(DatasetMissing, match="the dataset 'wrods' does not exist"):
        stillhouse.open_dataset("wrods", root=recipe.dataset.root)


def test_a_misspelt_split_is_refused(scripted_recipe: MakeRecipe) -> None:
    dataset = stillhouse.label(scripted_recipe(), progress=silent).dataset
    for read in (dataset.to_table, dataset.to_polars, lambda split: list(dataset.rows(split))):
        with pytest.raises(UsageError, match="split is 'test': there is no such split. Use train or validation"):
            read("test")


def test_a_split_without_rows_is_an_empty_table(scripted_recipe: MakeRecipe) -> None:
    raw = scripted_recipe().model_dump(mode="json", by_alias=True)
    dataset = stillhouse.label(stillhouse.load_recipe(raw, {"prompts.holdout": 0.0}), progress=silent).dataset
    assert dataset.to_table("validation").schema == dataset.to_table("train").schema
    assert len(dataset.to_table("validation")) == 0
