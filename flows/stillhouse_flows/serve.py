"""Run the schedules of `flows/prefect.yaml` on one machine, without a work pool: this process starts the runs.

Runs that write a recipe's dataset, students or report run one at a time across all deployments; runs that label a part of a
dataset run in parallel with them.

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
from stillhouse_flows.definitions import Changes, complete_registration, load_flow, read_definitions, run_with_server
from stillhouse_flows.recovery import HEARTBEAT, guard_runs


async def served_deployment(entry: dict[str, Any]) -> RunnerDeployment:
    """Return an entry of the file as a deployment that this process serves."""
    return await load_flow(entry).ato_deployment(
        entry["name"],
        schedules=[Cron(one["cron"], timezone=one["timezone"], slug=one["slug"]) for one in entry["schedules"]],
        parameters=entry["parameters"],
        description=entry["description"],
        tags=entry["tags"],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if (limit := entry["concurrency_limit"]) else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def serve(changes: Changes | None = None) -> None:
    """Run deployments on schedule until Ctrl-C, each run in a separate process; schedules are paused while not served.

    Raises:
        RecipeError: a recipe or a schedule is wrong.
        PrefectUnavailable: no server is configured, or it does not answer.
    """
    with safe_path_for_children():
        run_with_server(lambda: _serve(changes or Changes()))


async def _serve(changes: Changes) -> None:
    definitions = read_definitions(changes)
    sequential_runner = Runner(name="stillhouse", limit=1, pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT)
    parts_runner = Runner(name="stillhouse-parts", limit=None, pause_on_shutdown=True, heartbeat_seconds=HEARTBEAT)
    runners = []
    for runner, entries in ((sequential_runner, definitions.sequential), (parts_runner, definitions.parallel)):
        for entry in entries:
            await runner.aadd_deployment(await served_deployment(entry))
        runners += [runner] if entries else []
    async with get_client() as client:
        await complete_registration(client, definitions, served=True)
        await guard_runs(client)
    async with asyncio.TaskGroup() as group:
        for runner in runners:
            group.create_task(runner.start())


if __name__ == "__main__":
    serve()
