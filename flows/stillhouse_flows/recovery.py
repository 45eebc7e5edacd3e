"""End runs whose process is lost, so that they can be retried: `stillhouse flows guard`.

A flow run sends a heartbeat every 30 seconds. If its process and its worker are both killed, or its machine is lost, no
process reports the failure, and Prefect would show the run as Running, or as Pending before it begins, for ever. Two
automations of the server wait for the next event of a run, and set a run without one to Crashed. One begins to wait when
the run begins, since a process may be killed before its first heartbeat. A run that ends normally emits a last event
(common.emit_ended_event) after its last heartbeat. Retries are not automatic; a retry resumes from the journal or the last
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.events import ResourceSpecification

from stillhouse.errors import RecipeError
from stillhouse_flows.definitions import run_with_server

FLOWS = ["finetune", "label", "distill", "evaluate", "run"]
HEARTBEAT = 30  # seconds; prefect.toml and flows/prefect.yaml set it, and Prefect allows no less
AFTER = 3 * HEARTBEAT
BEGINS_WITHIN = 600  # seconds, enough to pull an image


@dataclass(frozen=True)
class _Automation:
    """An automation: after one of `events`, a run must emit another event in time."""

    name: str  # of the automation
    events: frozenset[str]
    message: str  # of a run that is set to Crashed; `seconds` completes it
    seconds: float  # default

    def build(self, seconds: float) -> AutomationCore:
        return AutomationCore(
            name=self.name,
            description="Set up by `stillhouse flows guard`.",
            trigger=EventTrigger(
                match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
                match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
                for_each={"prefect.resource.id"},
                after=set(self.events),
                expect={"prefect.flow-run.*"},  # a heartbeat, or a new state
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=seconds),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    message=f"{self.message} {seconds:g} seconds. Finished work is kept: retry this run, here or with "
                    "`prefect flow-run retry`, and it resumes.",
                    force=False,
                )
            ],
        )

    def is_earlier(self, registered: AutomationCore) -> bool:
        """Whether an earlier version registered it, which began to wait at other events."""
        return not isinstance(registered.trigger, EventTrigger) or registered.trigger.after != self.events

    def updated(self, registered: AutomationCore) -> AutomationCore:
        """Return the present automation with the seconds of a registered one, disabled if that was."""
        within = registered.trigger.within if isinstance(registered.trigger, EventTrigger) else None
        automation = self.build(self.seconds if within is None else within.total_seconds())
        automation.enabled = registered.enabled
        return automation


_BEGUN = _Automation(
    "Stillhouse: a run whose process is gone has crashed",
    frozenset({"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}),
    "Its process sent no heartbeat for",
    AFTER,
)
_TAKEN = _Automation(
    "Stillhouse: a run that a worker took and never began has crashed",
    frozenset({"prefect.flow-run.Pending"}),
    "A worker took it and did not begin it within",
    BEGINS_WITHIN,
)


def guard(after: float = AFTER, begins_within: float = BEGINS_WITHIN) -> None:
    """Create or change the automations.

    Args:
        after: seconds without a heartbeat after which a run that has begun is set to Crashed.
        begins_within: seconds from when a worker takes a run until it must have begun.

    Raises:
        RecipeError: one of them is so short that it would end healthy runs.
        PrefectUnavailable: no server is configured, or it does not answer.
    """
    if after <= HEARTBEAT:
        raise RecipeError(
            f"a run sends a heartbeat only every {HEARTBEAT} seconds",
            setting="--after",
            value=after,
            fix=f"give more than {HEARTBEAT} seconds, preferably {AFTER}",
        )
    if begins_within < HEARTBEAT:
        raise RecipeError(
            "a run's process takes some seconds to start",
            setting="--begins-within",
            value=begins_within,
            fix=f"give {HEARTBEAT} seconds or more, preferably {BEGINS_WITHIN}",
        )
    run_with_server(lambda: _guard(after, begins_within))


async def _guard(after: float, begins_within: float) -> None:
    async with get_client() as client:
        await _register(client, _BEGUN, after)
        await _register(client, _TAKEN, begins_within)


async def guard_runs(client: PrefectClient) -> None:
    """Create the automations that do not exist yet; existing ones keep their seconds and whether they are enabled."""
    for one in (_BEGUN, _TAKEN):
        await _register(client, one)


async def _register(client: PrefectClient, automation: _Automation, seconds: float | None = None) -> None:
    """Create or update the automation of this name; without `seconds`, an existing one keeps its own. Remove duplicates."""
    existing = await client.read_automations_by_name(automation.name)
    for surplus in existing[1:]:
        await client.delete_automation(surplus.id)
    if not existing:
        await client.create_automation(automation.build(seconds or automation.seconds))
    elif seconds is not None:
        await client.update_automation(existing[0].id, automation.build(seconds))
    elif automation.is_earlier(existing[0]):
        await client.update_automation(existing[0].id, automation.updated(existing[0]))
