"""A job in parts that others label: the same dataset as one process makes, and bounds that hold for all together."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PriceSettings, Recipe, load_recipe, recipe_from
from pipeline.dataset.store import dataset_folder, open_dataset
from pipeline.errors import BudgetSpent, RecipeError, WorkerLost, error_told
from pipeline.labelling import engine
from pipeline.labelling.begin import held_dataset
from pipeline.labelling.engine import LabelResult, job_in_turn, label
from pipeline.labelling.journal import JournalView
from tests.conftest import WORDS, MakeRecipe
from tests.stand_in import PROMPT_TOKENS, running_stand_in


class InThisProcess:
    """Labels parts as a worker does, and tells what it was given."""

    def __init__(self, workers: int = 2) -> None:
        self.recipes: list[Recipe] = []
        self.at_once = self.most_at_once = 0
        self._workers = workers

    async def label(self, recipe: str, name: str) -> None:
        loaded = load_recipe(recipe)
        self.recipes.append(loaded)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.work(loaded)
        finally:
            self.at_once -= 1

    async def work(self, recipe: Recipe) -> None:
        await label(recipe)


def in_parts(recipe: Recipe, runner: InThisProcess | None) -> LabelResult:
    async def run() -> LabelResult:
        async with job_in_turn(recipe) as job:
            try:
                await job.ask_elsewhere(runner)
                await job.run(job.label_shard)
            finally:
                await job.close()
            return job.commit()

    return asyncio.run(run())


def split_up(recipe: Recipe, **runner: Any) -> Recipe:
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["label"]["runner"] = {"kind": "ray", "workers": 2, "shards": 1, **runner}
    return recipe_from(raw, origin="test")


def rows(recipe: Recipe, *without: str) -> list[dict[str, Any]]:
    dataset = open_dataset(dataset_folder(recipe.dataset))
    found = [row for entry in dataset.manifest.files for row in dataset.open(entry).read().to_pylist()]
    return [{key: value for key, value in row.items() if key not in {"created_at", *without}} for row in found]


@pytest.mark.parametrize("soft", [None, {"encoding": "top-k", "k": 4}, {"encoding": "sampled", "draws": 8}])
def test_parts_make_the_dataset_that_one_process_makes(
    scripted_recipe: MakeRecipe, tmp_path: Path, soft: dict[str, Any] | None
) -> None:
    changes = {
        "label": {"shard_size": 2, "samples": 2, "soft": soft},
        "quality": [{"kind": "length", "max_tokens": 512}],
    }
    alone = scripted_recipe(**changes, dataset={"root": str(tmp_path / "alone"), "name": "words"})
    together = split_up(scripted_recipe(**changes, dataset={"root": str(tmp_path / "together"), "name": "words"}))
    asyncio.run(label(alone))
    runner = InThisProcess()
    result = in_parts(together, runner)
    assert rows(together) == rows(alone)
    assert (result.sent, result.reused) == (2 * len(WORDS), 0)
    assert len(runner.recipes) == len(WORDS) // 2
    assert runner.most_at_once == 2
    manifest, other = result.dataset.manifest, open_dataset(dataset_folder(alone.dataset)).manifest
    assert manifest.plan_sha256 == other.plan_sha256
    assert manifest.totals.model_dump() == other.totals.model_dump()
    assert not result.dataset.problems()
    assert not (dataset_folder(together.dataset) / "parts").exists()
    assert in_parts(together, runner).fresh is False
