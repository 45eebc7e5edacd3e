"""The labelling flow: teacher -> dataset, one task a shard.

A shard that fails is retried by Prefect; what is already answered is in the journal and is not asked for again.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from prefect import Task, flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import SyncClientContext
from prefect.states import Completed

from stillhouse.errors import BudgetSpent, TeacherRefused, UsageError
from stillhouse.labelling.engine import LabelJob, LabelResult, open_job_when_free
from stillhouse.labelling.retrying import Retry
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import check_labels
from stillhouse_flows.common import FLOW, TASK, Overrides, RecipePath, logged_progress, name_run, reported_errors
from stillhouse_flows.watching import show_dataset, show_plan, watched
from stillhouse_flows.work_pool import runner_of


async def _another_try_may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """What the recipe, the account or the budget forbids stays forbidden."""
    try:
        await state.aresult()
    except (UsageError, TeacherRefused, BudgetSpent):
        return False
    except Exception:  # whatever else it was: the store decides what is done, so trying is harmless
        return True
    return False


@task(
    name="label shard",
    task_run_name="label {name}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=_another_try_may_help,
    **TASK,
)
async def label_shard(job: LabelJob, number: int, name: str) -> None:
    """Label one shard of an open job."""
    await job.label_shard(number)


@flow(name="label", flow_run_name="label {recipe}", **FLOW)
async def label_flow(
    recipe: RecipePath, overrides: Overrides = None, retry_rejected: list[str] | None = None
) -> LabelResult:
    """Label a recipe's prompts.

    Args:
        recipe: A recipe file, such as flows/recipes/quickstart.yaml.
        overrides: Settings of the recipe to change, as --set takes them, such as label.sampling.temperature=0.5
        retry_rejected: Ask again what the teacher's errors rejected for these reasons; an empty list: for any reason.
    """
    log = get_run_logger()
    async with reported_errors():
        loaded = load_recipe(recipe, overrides or [])
        name_run("label", loaded)
        check_labels(loaded)
        async with open_job_when_free(loaded, logged_progress(), Retry.from_reasons(retry_rejected)) as job:
            try:
                await show_plan(job, loaded)
                async with watched(job, loaded):
                    await job.run_parts(runner_of(loaded.label.runner))
                    await job.run(lambda number: label_shard(job, number, job.describe(number)))
            finally:
                await job.close()
            result = job.commit()
        name_run("label", loaded, result.dataset.manifest)
        log.info("%s", result)
        await show_dataset(result, loaded)
    return cast(LabelResult, Completed(message=str(result), data=result))  # the state says it; the caller gets the data


def run_label_flow(recipe: str, overrides: Overrides = None, retry_rejected: list[str] | None = None) -> LabelResult:
    """Run the labelling flow to its end, outside of an event loop.

    Prefect 3.8.8 reads the server's settings for an asynchronous flow with a client that it never closes, unless one is
    open.
    """
    with SyncClientContext.get_or_create():
        return asyncio.run(label_flow(recipe, overrides, retry_rejected))
