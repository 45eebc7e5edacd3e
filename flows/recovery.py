"""End runs whose process is gone, so that they can be retried: what `stillhouse flows guard` sets up.

A flow run says every 30 seconds that it lives. Where its process and its worker are both killed, or its machine is lost,
nobody is left to say that it failed, and Prefect would show it as Running for ever. An automation of the server waits for
the next sign of life, and ends a run that gives none as Crashed. Nothing is retried by itself: a retry goes on where the
journal, or the last checkpoint, stands.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.events import ResourceSpecification

from flows.definitions import at_server
from pipeline.errors import RecipeError

NAME = "Stillhouse: a run whose process is gone has crashed"
FLOWS = ["finetune", "label", "distill", "evaluate", "run"]
HEARTBEAT = 30  # seconds; prefect.toml and flows/prefect.yaml set it, and Prefect allows no less
AFTER = 3 * HEARTBEAT


def guard(after: float = AFTER) -> None:
    """Set up the automation, or change it; `after` is in seconds without a sign of life.

    Raises:
        RecipeError: `after` is too short for a run that lives.
        PrefectUnavailable: there is no server.
    """
    if after <= HEARTBEAT:
        raise RecipeError(
            f"--after is {after:g}: a run that lives says so every {HEARTBEAT} seconds, so give more, best {AFTER}"
        )
    at_server(lambda: _guard(after))


async def _guard(after: float) -> None:
    async with get_client() as client:
        await guard_runs(client, after)


async def guard_runs(client: PrefectClient, after: float | None = None) -> None:
    """One automation of this name, however often this is called; without `after` one that is there stays as it is."""
    there = await client.read_automations_by_name(NAME)
    if not there:
        await client.create_automation(_automation(after or AFTER))
    elif after is not None:
        await client.update_automation(there[0].id, _automation(after))
    for surplus in there[1:]:
        await client.delete_automation(surplus.id)


def _automation(after: float) -> AutomationCore:
    return AutomationCore(
        name=NAME,
        description="Set up by `stillhouse flows guard`.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # a heartbeat, or that it has ended, or waits
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"Its process gave no sign of life for {after:g} seconds. What was done is kept: retry this run, "
                "here or with `prefect flow-run retry`, and it goes on where it was.",
                force=False,
            )
        ],
    )
