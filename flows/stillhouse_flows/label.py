"""The labelling flow: teacher -> dataset, one task per shard.

Prefect retries a shard that fails; answers are in the journal and are not requested again.
"""

from __future__ import annotations

from stillhouse_flows import search_working_folder_last

search_working_folder_last()

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from prefect import Task, flow, get_run_logger, runtime, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import SyncClientContext
from prefect.states import Completed

from stillhouse.errors import BudgetSpent, JobsPending, TeacherRefused, UsageError
from stillhouse.labelling.engine import open_job_when_free
from stillhouse.labelling.job import LabelJob
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import check_labels
from stillhouse_flows.artifacts import publish_dataset, publish_plan, publishing_progress
from stillhouse_flows.common import FLOW, TASK, Overrides, RecipePath, logged_progress, name_run, reported_errors
from stillhouse_flows.work_pool import open_runner_in_flow


@dataclass(frozen=True)
class Pending:
    """The result of a run that has left batch jobs at the provider."""

    error: JobsPending


async def _retry_unless_refused(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry: not if the recipe, the account or the budget is the cause."""
    try:
        await state.aresult()
    except (UsageError, TeacherRefused, BudgetSpent):
        return False
    except Exception:  # the store skips finished work, so a retry is harmless
        return True
    return False


@task(
    name="label shard",
    task_run_name="label {name}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=_retry_unless_refused,
    **TASK,
)
async def label_shard(job: LabelJob, number: int, name: str) -> None:
    """Label one shard of an open job."""
    await job.label_shard(number)


@flow(name="label", flow_run_name="label {recipe}", **FLOW)
async def label_flow(
    recipe: RecipePath,
    overrides: Overrides = None,
    retry_rejected: list[str] | None = None,
    detach: bool | None = None,
) -> LabelResult | Pending:
    """Label a recipe's prompts.

    Args:
        recipe: A recipe file, such as flows/recipes/quickstart.yaml.
        overrides: Settings of the recipe to change, as for --set, such as label.sampling.temperature=0.5
        retry_rejected: Retry requests that the teacher's errors rejected for these reasons; an empty list: for any.
        detach: With batch jobs, end this run while they are at the provider, and let a later run collect them. By default
            a deployment's runs do.
    """
    log = get_run_logger()
    async with reported_errors():
        loaded = load_recipe(recipe, overrides or [])
        name_run("label", loaded)
        check_labels(loaded)
        async with open_job_when_free(loaded, logged_progress(), Retry.from_reasons(retry_rejected)) as job:
            try:
                await publish_plan(job, loaded)
                async with publishing_progress(job, loaded):
                    await job.run_batches(wait=not leaves_batch_jobs(detach))
                    await job.run_parts(open_runner_in_flow(loaded.label.runner))
                    await job.run(lambda number: label_shard(job, number, job.describe(number)))
            except JobsPending as pending:
                log.info("%s", pending)
                return cast(Pending, Completed(message=str(pending), data=Pending(pending)))
            finally:
                await job.close()
            result = job.commit()
        name_run("label", loaded, result.dataset.manifest)
        log.info("%s", result)
        await publish_dataset(result, loaded)
    return cast(LabelResult, Completed(message=str(result), data=result))  # message for the state, data for the caller


def leaves_batch_jobs(detach: bool | None) -> bool:
    """Whether to end the run while batch jobs are at the provider, so that no worker waits for a day."""
    return runtime.deployment.id is not None if detach is None else detach


def run_label_flow(
    recipe: str, overrides: Overrides = None, retry_rejected: list[str] | None = None, detach: bool | None = None
) -> LabelResult:
    """Run the labelling flow from synchronous code.

    Raises:
        JobsPending: batch jobs are running, and the run does not wait for them.

    For an asynchronous flow, Prefect 3.8.8 reads the server's settings with a client that it never closes, unless a client
    is already open.
    """
    with SyncClientContext.get_or_create():
        result = asyncio.run(label_flow(recipe, overrides, retry_rejected, detach))
    if isinstance(result, Pending):
        raise result.error
    return result
