"""One machine and no work pool: this process waits for the schedules of `flows/prefect.yaml` and starts their runs.

What writes a recipe's dataset, students or report runs one at a time, whichever deployment it is of; parts of a dataset run
beside it.

python -m stillhouse_flows.serve          # the same as `stillhouse flows serve`
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from stillhouse.processes.environment import safe_path_for_children
from stillhouse_flows.definitions import Changes, at_server, flow_of, read_definitions, settle
from stillhouse_flows.recovery import HEARTBEAT, guard_runs


async def served(entry: dict[str, Any]) -> RunnerDeployment:
    """An entry of the file as a deployment that this process serves."""
    return await flow_of(entry).ato_deployment(
        entry["name"],
        schedules=[Cron(one["cron"], timezone=one["timezone"], slug=one["slug"]) for one in entry["schedules"]],
        parameters=entry["parameters"],
        description=entry["description"],
        tags=entry["tags"],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if (limit := entry["concurrency_limit"]) else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def serve(changes: Changes | None = None) -> None:
    """Run what is due until Ctrl-C, in processes of their own; the schedules are paused while nobody serves them.

    Raises:
        RecipeError: a recipe or a schedule is wrong.
        PrefectUnavailable: there is no server.
    """
    with safe_path_for_children():
        at_server(lambda: _serve(changes or Changes()))


async def _serve(changes: Changes) -> None:
    definitions = read_definitions(changes)
    alone = Runner(name="stillhouse", limit=1, pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT)
    beside = Runner(name="stillhouse-parts", limit=None, pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT)
    runners = []
    for runner, entries in ((alone, definitions.in_turn), (beside, definitions.beside)):
        for entry in entries:
            await runner.aadd_deployment(await served(entry))
        runners += [runner] if entries else []
    async with get_client() as client:
        await settle(client, definitions, served=True)
        await guard_runs(client)
    async with asyncio.TaskGroup() as group:
        for runner in runners:
            group.create_task(runner.start())


if __name__ == "__main__":
    serve()
