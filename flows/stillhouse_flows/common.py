"""Shared by all flows: typed parameters, run names, progress, and no results in Prefect's storage."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any
from uuid import UUID

import httpx
from prefect import Flow, Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext
from prefect.events import emit_event
from pydantic import Field

from stillhouse.dataset.manifest import Manifest, version_label
from stillhouse.errors import StillhouseError, UsageError, error_from
from stillhouse.processes.quiet import quiet_libraries
from stillhouse.progress import PlainProgress, Progress
from stillhouse.recipe.recipe import Recipe

# No persistent caching: the store decides whether a shard or a student is done (docs/architecture.md).
ENDED = "prefect.flow-run.ended"  # the last event of a Stillhouse run
TASK: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
LOG_EVERY = 30.0  # seconds between two lines of progress, because a server stores each line
TAG = "stillhouse"  # of every run of these flows
_ERROR = "stillhouse.error"  # label of a flow run: the error that ended it

# A deployment's form and the API check these; the recipe itself is checked when the run begins.
RecipePath = Annotated[str, Field(min_length=1)]
Overrides = list[Annotated[str, Field(pattern=r"^[^=\s]+=")]] | None


def emit_ended_event(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Emit the event that a run has ended, after its heartbeats and over the same channel.

    The server receives states at once, but heartbeats some seconds after they were sent, often after a short run has ended.
    The automations of recovery.py would then wait for the next heartbeat of a run that has ended.
    """
    emit_event(
        event=ENDED,
        resource={"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow.name,
            }
        ],
        payload={"state": state.name},
    )


FLOW: dict[str, Any] = {
    "persist_result": False,
    "validate_parameters": True,
    **{when: [emit_ended_event] for when in ("on_completion", "on_failure", "on_crashed", "on_cancellation")},
}


def logged_progress() -> Progress:
    """Return progress that writes lines to the run's log."""
    quiet_libraries()
    return PlainProgress(get_run_logger().info, LOG_EVERY)


def retry_unless_usage_error(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry: not if the recipe is wrong; otherwise yes, since the store skips finished work."""
    return not isinstance(state.data, UsageError)


TRAINING_TASK: dict[str, Any] = {  # options of every task that trains a model; a retry resumes from a checkpoint
    "retries": 1,
    "retry_delay_seconds": 10,
    "retry_condition_fn": retry_unless_usage_error,
    **TASK,
}


@asynccontextmanager
async def reported_errors() -> AsyncIterator[None]:
    """Attach a Stillhouse error to the flow run as JSON, for the run that started it (`reported_error`)."""
    try:
        yield
    except StillhouseError as error:
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None:
            with suppress(httpx.HTTPError):  # the run fails with the error anyway
                async with get_client() as client:
                    await client.update_flow_run_labels(context.flow_run.id, {_ERROR: json.dumps(error.as_dict())})
        raise


async def reported_error(run_id: UUID) -> StillhouseError | None:
    """Return the error that a flow run reported; None if it reported none."""
    async with get_client() as client:
        labels = (await client.read_flow_run(run_id)).labels
    text = labels.get(_ERROR)
    return error_from(json.loads(text)) if isinstance(text, str) else None


class _NoTraceback(logging.Filter):
    """Drop the traceback of Stillhouse errors, whose message is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StillhouseError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):  # names of Prefect's loggers
    logging.getLogger(_name).addFilter(_NoTraceback())


def name_run(stage: str, recipe: Recipe, manifest: Manifest | None = None) -> None:
    """Name the current flow run after its recipe and, once known, the dataset's version."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    name = f"{stage} {recipe.name}"
    if manifest is not None:
        name += f" {version_label(manifest.version) if manifest.name == recipe.name else manifest.label}"
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            context.flow_run.id, name=name, tags=sorted({*context.flow_run.tags, TAG, stage, recipe.name})
        )
