"""A job in parts that others label: the same dataset as one process makes, and bounds that hold for all together."""

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import dataset_folder, journal_folder, open_dataset
from stillhouse.errors import BudgetSpent, RecipeError, StorageFailed, TeacherRefused, WorkerLost
from stillhouse.labelling.dataset_lock import lock_dataset
from stillhouse.labelling.engine import label, open_job, open_job_when_free
from stillhouse.labelling.journal_view import JournalView
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.stages.stages import label_stage
from tests.conftest import WORDS, MakeRecipe
from tests.stand_in import running_stand_in


class InThisProcess:
    """Labels parts as a worker does, and tells what it was given."""

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.at_once = self.most_at_once = 0

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
        async with open_job_when_free(recipe) as job:
            try:
                await job.run_parts(runner)
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


def test_a_worker_s_defect_is_raised_at_once_and_not_retried(scripted_recipe: MakeRecipe) -> None:
    class Defect(InThisProcess):
        async def work(self, recipe: Recipe) -> None:
            raise TypeError("a plug-in's fault")

    runner = Defect()
    with pytest.raises(TypeError, match="a plug-in's fault"):
        in_parts(split_up(scripted_recipe(label={"shard_size": 100})), runner)
    assert len(runner.recipes) == 1


def test_every_worker_has_a_part_however_large_parts_may_be(scripted_recipe: MakeRecipe) -> None:
    recipe = split_up(scripted_recipe(label={"shard_size": 1}), workers=4, shards=100)
    runner = InThisProcess()
    in_parts(recipe, runner)
    assert len(runner.recipes) == runner.most_at_once == 4


def test_a_prompt_that_the_teacher_rejects_in_a_part_is_rejected_and_not_asked_again(api_recipe: MakeRecipe) -> None:
    prompts = ["Name a colour.", "!400policy* Name another.", "Name a third."]
    with running_stand_in() as server:
        recipe = split_up(api_recipe(server.base_url, prompts, shard_size=1, max_rejected=1.0))
        result = in_parts(recipe, InThisProcess())
        assert server.stats.seen["!400policy* Name another."] == 1
    assert result.dataset.manifest.rejected == {"policy": 1}
    assert sum(result.dataset.manifest.rows.values()) == 2


def test_the_rate_limits_are_shared_among_the_workers(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        limits = {"requests_per_minute": 601, "tokens_per_minute": None}
        recipe = split_up(api_recipe(server.base_url, WORDS, shard_size=2, limits=limits), workers=3)
        runner = InThisProcess()
        in_parts(recipe, runner)
    assert runner.most_at_once == 3
    assert {one.label.limits.requests_per_minute for one in runner.recipes} == {200}
    with pytest.raises(RecipeError, match=r"limits.requests_per_minute is 2: it cannot be divided among 3 workers"):
        split_up(api_recipe("http://127.0.0.1:1", WORDS, limits={"requests_per_minute": 2}), workers=3)


# ------------------------------------------------------------------------------------------------------------ the budget

PRICE = {"input_usd_per_million": 0.0, "output_usd_per_million": 100_000.0}  # a dollar an answer, by its usage
WORST = 1.6  # by `max_tokens`


def priced(api_recipe: MakeRecipe, base_url: str, prompts: int, budget: float, **label: Any) -> Recipe:
    words = [f"Name {word}." for word in WORDS[:prompts]]
    sampling = {"temperature": 0.0, "max_tokens": 16}
    given = {"budget_usd": budget, "sampling": sampling, "shard_size": 1, **label}
    return split_up(api_recipe(base_url, words, price=PRICE, **given), shards=2)


def test_a_budget_that_covers_the_worst_case_is_lent_in_parts_and_what_is_not_spent_comes_back(
    api_recipe: MakeRecipe,
) -> None:
    with running_stand_in() as server:
        recipe = priced(api_recipe, server.base_url, 8, budget=20.0)
        runner = InThisProcess()
        result = in_parts(recipe, runner)
        assert server.stats.billed_answers == 8
    assert [one.label.budget_usd for one in runner.recipes] == [pytest.approx(2 * WORST)] * 4
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(8.0)


def test_parts_share_a_small_budget_and_get_more_when_others_bring_something_back(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = priced(api_recipe, server.base_url, 6, budget=6.7)
        runner = InThisProcess()
        in_parts(recipe, runner)
        assert server.stats.billed_answers == 6
    assert len(runner.recipes) > 3  # some part was lent to twice


def test_all_together_never_pass_the_budget_and_a_larger_one_goes_on_where_they_stopped(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        with pytest.raises(BudgetSpent, match="reserved for parts|could cost") as error_info:
            in_parts(priced(api_recipe, server.base_url, 12, budget=5.0), InThisProcess())
        assert (error_info.value.setting, error_info.value.value) == ("label.budget_usd", 5.0)
        assert 2 <= server.stats.billed_answers <= 5
        with journal_of(priced(api_recipe, server.base_url, 12, budget=5.0)) as view:
            assert view.spent() <= 5.0
        larger = priced(api_recipe, server.base_url, 12, budget=14.0)
        result = in_parts(larger, InThisProcess())
        assert server.stats.billed_answers == 12
        assert max(server.stats.billed.values()) == 1
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(12.0)


def test_a_budget_for_a_teacher_that_costs_nothing_is_no_hindrance(api_recipe: MakeRecipe) -> None:
    free = {"input_usd_per_million": 0.0, "output_usd_per_million": 0.0}
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, ["Name a colour."], price=free, budget_usd=1.0)
        assert in_parts(split_up(recipe), InThisProcess()).sent == 1


def test_a_lease_counts_as_spent_until_its_part_is_done(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = priced(api_recipe, server.base_url, 2, budget=10.0)
        with pytest.raises(WorkerLost):
            in_parts(recipe, Lost(times=3))
        with journal_of(recipe) as view:
            assert view.spent() == pytest.approx(2 * WORST)
        result = in_parts(recipe, InThisProcess())
    assert result.dataset.manifest.totals.spent_usd == pytest.approx(2.0)


# ---------------------------------------------------------------------------------------------------------- what is lost


class Lost(InThisProcess):
    """Workers that are gone in the middle of a part, the first `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    async def work(self, recipe: Recipe) -> None:
        if self._times:
            self._times -= 1
            raise WorkerLost("the worker is gone")
        await super().work(recipe)


def journal_of(recipe: Recipe) -> Any:
    return closing(JournalView(journal_folder(recipe.dataset)))


def test_a_part_whose_worker_is_lost_is_handed_out_again_and_at_last_given_up(scripted_recipe: MakeRecipe) -> None:
    recipe = split_up(scripted_recipe())
    assert in_parts(recipe, Lost(times=2)).sent == len(WORDS)
    changed = split_up(scripted_recipe(label={"shard_size": 4, "sampling": {"temperature": 0.1}}))
    with pytest.raises(WorkerLost, match="the worker is gone"):
        in_parts(changed, Lost(times=9))


class StopsAfter(InThisProcess):
    """Labels the first parts, and half of the next: what a kill of everything leaves."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self._parts = parts

    async def work(self, recipe: Recipe) -> None:
        if not self._parts:
            with open_job(recipe) as job:
                await job.label_shard(0)
                await job.close()
            raise StorageFailed("everything is killed")
        self._parts -= 1
        await super().work(recipe)


@pytest.mark.parametrize("goes_on", ["elsewhere", "here"])
def test_what_an_earlier_run_handed_out_is_finished_and_nothing_is_asked_twice(
    api_recipe: MakeRecipe, goes_on: str
) -> None:
    with running_stand_in() as server:
        recipe = split_up(api_recipe(server.base_url, WORDS, shard_size=2), workers=1, shards=3)
        with pytest.raises(StorageFailed):
            in_parts(recipe, StopsAfter(1))
        assert 6 < server.stats.billed_answers < len(WORDS)
        runner = InThisProcess()
        result = in_parts(recipe, runner if goes_on == "elsewhere" else None)
        assert server.stats.billed == Counter(WORDS)
    assert len(runner.recipes) == (1 if goes_on == "elsewhere" else 0)
    assert result.sent + result.reused == len(WORDS)
    assert not (dataset_folder(recipe.dataset) / "parts").exists()


def test_a_shard_that_is_written_is_not_asked_again_where_its_journal_is_gone(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = split_up(api_recipe(server.base_url, WORDS, shard_size=2))

        async def half() -> None:
            with open_job(recipe) as job:
                for number in range(job.shards // 2):
                    await job.label_shard(number)
                await job.close()

        asyncio.run(half())
        asked = server.stats.billed_answers
        for file in dataset_folder(recipe.dataset).glob("journal.sqlite*"):
            file.unlink()
        in_parts(recipe, InThisProcess())
        assert 0 < asked < len(WORDS)
        assert server.stats.billed == Counter(WORDS)


def test_a_part_is_not_handed_out_while_its_old_worker_is_still_at_work(scripted_recipe: MakeRecipe) -> None:
    recipe = split_up(scripted_recipe(), workers=1, shards=9)
    with pytest.raises(StorageFailed):
        in_parts(recipe, StopsAfter(0))
    (part,) = (dataset_folder(recipe.dataset) / "parts").iterdir()
    zombie = DatasetSettings(root=str(part.parent), name=part.name)
    runner = InThisProcess()

    async def both() -> None:
        with lock_dataset(zombie):
            going = asyncio.create_task(asyncio.to_thread(in_parts, recipe, runner))
            await asyncio.sleep(1.5)
            assert not runner.recipes
        await going

    asyncio.run(both())
    assert len(runner.recipes) == 1


def test_a_root_that_the_workers_do_not_share_is_told_of(scripted_recipe: MakeRecipe) -> None:
    class Elsewhere(InThisProcess):
        async def work(self, recipe: Recipe) -> None:
            return

    with pytest.raises(RecipeError, match="a folder that all workers share") as error_info:
        in_parts(split_up(scripted_recipe()), Elsewhere())
    assert error_info.value.setting == "dataset.root"


def test_a_failure_in_a_part_is_the_failure_of_the_job_and_stops_the_others(api_recipe: MakeRecipe) -> None:
    with running_stand_in() as server:
        recipe = split_up(api_recipe(server.base_url, ["!401* Say hello.", *WORDS], shard_size=1))
        with pytest.raises(TeacherRefused):
            in_parts(recipe, InThisProcess())


# ----------------------------------------------------------------------------------------------------- settings and words


def test_a_work_pool_needs_a_server(scripted_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="label.runner.kind is 'work-pool': no Prefect server is configured"):
        asyncio.run(label_stage(split_up(scripted_recipe(), kind="work-pool")))
