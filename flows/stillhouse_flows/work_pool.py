"""Parts of a labelling job as runs of a deployment: `label.runner: {kind: work-pool}`.

The deployment `label/part` (flows/prefect.yaml) is the labelling flow in a work pool: Prefect assigns its runs to workers
on one or more machines. A run that is lost is set to Crashed (recovery.py), and its part is dispatched again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelling

from stillhouse.errors import PrefectUnavailable, WorkerFailed, WorkerLost
from stillhouse.labelling.runner import Runner
from stillhouse.labelling.runners.base import open_runner
from stillhouse.recipe.label import RunnerSettings
from stillhouse_flows.common import TAG, reported_error

_POLL_SECONDS = 2.0  # between two requests for a run's state


class WorkPool:
    """Dispatches parts to a deployment of a Prefect server."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment

    async def label(self, recipe: str, name: str) -> None:
        """Label a part in a run of the deployment, and wait for its end; see `Runner.label`.

        Raises:
            StillhouseError: the error that the run reported.
            PrefectUnavailable: the deployment does not exist.
            WorkerFailed: the run raised another exception: a defect, or an error of a plug-in.
            WorkerLost: the run ended without reporting an error.
        """
        run = await self._start(recipe, name)
        try:
            state = await _wait_for_end(run)
        except asyncio.CancelledError:
            async with get_client() as client:
                await client.set_flow_run_state(run.id, Cancelling(message="The run that started it was stopped."))
            raise
        if state.is_completed():
            return
        ended = f"the run of {name} ended as {state.name} ({state.message or state.name})"
        error = await reported_error(run.id)
        raise error or (WorkerFailed(ended) if state.is_failed() else WorkerLost(ended))

    async def _start(self, recipe: str, name: str) -> FlowRun:
        try:
            return await arun_deployment(
                self._deployment, parameters={"recipe": recipe}, flow_run_name=name, timeout=0, tags=[TAG, "part"]
            )
        except ObjectNotFound:
            raise PrefectUnavailable(
                "the server has no such deployment",
                setting="label.runner.deployment",
                value=self._deployment,
                fix="create it with `stillhouse flows deploy`, or name another one",
            ) from None


def open_runner_in_flow(settings: RunnerSettings) -> Runner | None:
    """Return the runner of a recipe's parts, within a flow; None: this process labels.

    Raises:
        RecipeError: the runner's settings are wrong, a library is missing, or a work pool has no server to reach.
    """
    if settings.kind == "work-pool" and get_current_settings().api.url is not None:
        return WorkPool(settings.deployment)
    return open_runner(settings)


async def _wait_for_end(run: FlowRun) -> State[Any]:
    async with get_client() as client:
        while run.state is None or not run.state.is_final():
            await asyncio.sleep(_POLL_SECONDS)
            run = await client.read_flow_run(run.id)
    return run.state
