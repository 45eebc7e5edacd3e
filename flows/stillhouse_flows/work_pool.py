"""Parts of a labelling job as runs of a deployment: `label.runner: {kind: work-pool}`.

The deployment `label/part` (flows/prefect.yaml) is the labelling flow itself, in a work pool: Prefect gives its runs to the
workers, on as many machines as have one. A run that is lost, begun or not, ends as Crashed (recovery.py), and its part is
handed out again.
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
from stillhouse.labelling.parts import Runner
from stillhouse.labelling.runners.base import open_runner
from stillhouse.recipe.label import RunnerSettings
from stillhouse_flows.common import TAG, reported_error

_LOOK_EVERY = 2.0  # seconds, at a run that is under way


class WorkPool:
    """Hands parts to a deployment of a Prefect server."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment

    async def label(self, recipe: str, name: str) -> None:
        """As `Runner.label`.

        Raises:
            PrefectUnavailable: there is no such deployment.
            WorkerFailed: the run raised what is no error of this program: a defect, or a plug-in's fault.
        """
        run = await self._start(recipe, name)
        try:
            state = await _end_of(run)
        except asyncio.CancelledError:
            async with get_client() as client:
                await client.set_flow_run_state(run.id, Cancelling(message="The run that asked for it was stopped."))
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
                f"label.runner.deployment is {self._deployment!r}, which the server does not know: give it with "
                "`stillhouse flows deploy`, or name another"
            ) from None


def runner_of(settings: RunnerSettings) -> Runner | None:
    """What hands a recipe's parts out, within a flow.

    Raises:
        RecipeError: as `open_runner` does; a work pool needs a server that workers can reach.
    """
    if settings.kind == "work-pool" and get_current_settings().api.url is not None:
        return WorkPool(settings.deployment)
    return open_runner(settings)


async def _end_of(run: FlowRun) -> State[Any]:
    async with get_client() as client:
        while run.state is None or not run.state.is_final():
            await asyncio.sleep(_LOOK_EVERY)
            run = await client.read_flow_run(run.id)
    return run.state
