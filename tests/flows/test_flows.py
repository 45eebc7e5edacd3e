"""The flows on a real Prefect API: the same results as without, one task a shard or a stage, tables as artifacts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import dataset_folder, open_dataset
from stillhouse.errors import JobsPending, RecipeError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.labelling.batches.test_batches import provider, recipe_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]


async def task_names(flow_name: str) -> list[str]:
    """Names of the task runs of the newest run of a flow."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])), sort=FlowRunSort.START_TIME_DESC, limit=1
        )
        for _ in range(60):  # task runs reach the server through a queue
            tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[runs[0].id])))
            if tasks and all(task.state and task.state.is_final() for task in tasks):
                return sorted(task.name for task in tasks)
            await asyncio.sleep(0.5)
    raise AssertionError(f"the tasks of {flow_name} never ended")


async def artifact(key: str) -> Any:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        found = await client.read_latest_artifacts()
    return next(one.data for one in found if one.key == key)


def rows_of(recipe: Recipe) -> list[Any]:
    """The rows of a recipe's dataset, less the time when each was made."""
    dataset = open_dataset(dataset_folder(recipe.dataset))
    rows = [
        completion_at(batch, index)
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]
    return [
        (row.id, row.text, row.prompt, row.trace.soft.logprobs.tolist() if row.trace and row.trace.soft else None)
        for row in rows
    ]


def test_the_label_flow_has_one_task_a_shard_and_the_same_rows(
    scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    from stillhouse_flows.label import label_flow

    recipe = scripted_recipe()
    result = asyncio.run(label_flow(str(recipe_file(recipe))))
    assert result.sent == 12
    shards = [entry.path for entry in result.dataset.files("train", "validation")]
    names = asyncio.run(task_names("label"))
    assert len(names) == len(shards)
    assert all(name.startswith("label ") for name in names)
    table = asyncio.run(artifact("labels-test"))
    assert "train" in str(table)

    direct = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"root": str(tmp_path / "direct")})})
    asyncio.run(label(direct))
    assert rows_of(direct) == rows_of(recipe)


def test_a_run_leaves_batch_jobs_and_a_later_one_collects_them(
    api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    from stillhouse_flows.label import Pending, label_flow, leaves_batch_jobs, run_label_flow

    with provider(polls=2) as server:
        file = str(recipe_file(recipe_of(api_recipe, server)))
        left = asyncio.run(label_flow(file, detach=True))
        assert isinstance(left, Pending)
        with pytest.raises(JobsPending, match="1 batch job with 12 requests is at the provider"):
            run_label_flow(file, detach=True)
        assert not leaves_batch_jobs(None)  # of a run that a person began
        assert run_label_flow(file).sent == 12
        assert (server.stats.requests, server.stats.billed_answers) == (0, 12)


def test_the_run_flow_goes_the_whole_way_and_again_does_nothing(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    from stillhouse_flows.run import run_flow

    recipe = str(recipe_file(tiny_recipe()))
    first = run_flow(recipe)
    assert first.labelled.sent == 12
    assert [student.trained for student in first.students] == [True, True]
    assert first.evaluation.fresh
    assert asyncio.run(task_names("distill")) == ["train black-box student", "train white-box student"]
    students, report = asyncio.run(artifact("students-test")), asyncio.run(artifact("report-test"))
    assert "students/test/white-box" in students
    assert "white-box student" in report
    assert f"({first.evaluation.files.html.resolve().as_uri()})" in report
    again = run_flow(recipe)
    assert again.labelled.sent == 0
    assert [student.trained for student in again.students] == [False, False]
    assert not again.evaluation.fresh


def test_the_run_flow_fine_tunes_the_teacher_first(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    from stillhouse_flows.finetune import finetune_flow
    from stillhouse_flows.label import label_flow
    from stillhouse_flows.run import run_flow

    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    finetune = {"root": str(tmp_path / "teachers"), "train": parts["student"]["train"]}
    recipe = tiny_recipe(
        teacher=parts["teacher"] | {"finetune": finetune},
        student={**parts["student"], "mode": "gold"},
        evaluate=parts["evaluate"] | {"baselines": []},
    )
    file = str(recipe_file(recipe))
    with pytest.raises(TeacherUnavailable, match="has not been fine-tuned yet"):
        asyncio.run(label_flow(file))
    result = run_flow(file)
    assert result.finetuned is not None
    assert result.finetuned.trained
    assert [student.card.variant for student in result.students] == ["gold"]
    assert asyncio.run(task_names("finetune")) == ["fine-tune teacher"]
    assert "teachers/test/gold" in str(asyncio.run(artifact("teacher-test")))
    again = finetune_flow(file)
    assert again is not None
    assert not again.trained


def test_a_wrong_recipe_fails_the_flow_with_its_own_error(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    from stillhouse_flows.run import run_flow

    with pytest.raises(RecipeError, match="Did you mean 'temperature'"):
        run_flow(str(recipe_file(tiny_recipe())), ["label.sampling.temprature=1"])


def test_a_student_that_cannot_learn_is_refused_by_the_flows_before_anything_is_labelled(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    """A deployment's run comes past no command line."""
    from stillhouse_flows.label import label_flow
    from stillhouse_flows.run import run_flow

    parts = tiny_recipe().model_dump(mode="json", by_alias=True)["student"]
    deep = tiny_recipe(student={**parts, "init": {"from": "teacher", "layers": 9}})
    with pytest.raises(RecipeError, match="the teacher has only 4"):
        asyncio.run(label_flow(str(recipe_file(deep))))
    untrainable = tiny_recipe(student={**parts, "train": {"learning_rat": 1}})
    with pytest.raises(RecipeError, match="Did you mean 'learning_rate'"):
        run_flow(str(recipe_file(untrainable)))
    assert not (tmp_path / "labels").exists()
