"""End runs whose process is gone, so that they can be retried: what `stillhouse flows guard` sets up.

A flow run says every 30 seconds that it lives. Where its process and its worker are both killed, or its machine is lost,
nobody is left to say that it failed, and Prefect would show it as Running for ever, or as Pending where it had not begun.
Two automations of the server wait for the next word of it, and end a run that gives none as Crashed. The last word of a run
that ends by itself is its own event (common.emit_ended_event), which follows its last heartbeat. Nothing is retried by itself: a
retry goes on where the journal, or the last checkpoint, stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.events import ResourceSpecification

from stillhouse.errors import RecipeError
from stillhouse_flows.definitions import at_server

FLOWS = ["finetune", "label", "distill", "evaluate", "run"]
HEARTBEAT = 30  # seconds; prefect.toml and flows/prefect.yaml set it, and Prefect allows no less
AFTER = 3 * HEARTBEAT
BEGINS_WITHIN = 600  # seconds: an image may have to be fetched


@dataclass(frozen=True)
class _Watch:
    """What a run must be heard of after."""

    name: str  # of the automation
    event: str
    told: str  # of a run that is not, which `seconds` completes
    seconds: float  # where nothing else is asked for

    def automation(self, seconds: float) -> AutomationCore:
        return AutomationCore(
            name=self.name,
            description="Set up by `stillhouse flows guard`.",
            trigger=EventTrigger(
                match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
                match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
                for_each={"prefect.resource.id"},
                after={self.event},
                expect={"prefect.flow-run.*"},  # a heartbeat, or that it has begun or ended, or waits
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=seconds),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    message=f"{self.told} {seconds:g} seconds. What was done is kept: retry this run, here or with "
                    "`prefect flow-run retry`, and it goes on where it was.",
                    force=False,
                )
            ],
        )


_BEGUN = _Watch(
    "Stillhouse: a run whose process is gone has crashed",
    "prefect.flow-run.heartbeat",
    "Its process gave no sign of life for",
    AFTER,
)
_TAKEN = _Watch(
    "Stillhouse: a run that a worker took and never began has crashed",
    "prefect.flow-run.Pending",
    "A worker took it and did not begin it within",
    BEGINS_WITHIN,
)


def guard(after: float = AFTER, begins_within: float = BEGINS_WITHIN) -> None:
    """Set up the automations, or change them.

    Args:
        after: seconds without a sign of life, of a run that has begun.
        begins_within: seconds from the moment when a worker takes a run until it must have begun.

    Raises:
        RecipeError: one of them is too short for a run that lives.
        PrefectUnavailable: there is no server.
    """
    if after <= HEARTBEAT:
        raise RecipeError(
            f"--after is {after:g}: a run that lives says so every {HEARTBEAT} seconds, so give more, best {AFTER}"
        )
    if begins_within < HEARTBEAT:
        raise RecipeError(
            f"--begins-within is {begins_within:g}: a run's process takes some seconds to start, so give {HEARTBEAT} or "
            f"more, best {BEGINS_WITHIN}"
        )
    at_server(lambda: _guard(after, begins_within))


async def _guard(after: float, begins_within: float) -> None:
    async with get_client() as client:
        await _watch(client, _BEGUN, after)
        await _watch(client, _TAKEN, begins_within)


async def guard_runs(client: PrefectClient) -> None:
    """Set up what is not there yet; what is stays as it is."""
    for one in (_BEGUN, _TAKEN):
        await _watch(client, one)


async def _watch(client: PrefectClient, watch: _Watch, seconds: float | None = None) -> None:
    """One automation of this name, however often this is called; without `seconds` one that is there stays as it is."""
    there = await client.read_automations_by_name(watch.name)
    if not there:
        await client.create_automation(watch.automation(seconds or watch.seconds))
    elif seconds is not None:
        await client.update_automation(there[0].id, watch.automation(seconds))
    for surplus in there[1:]:
        await client.delete_automation(surplus.id)
