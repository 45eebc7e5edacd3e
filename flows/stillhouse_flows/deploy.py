"""Register the deployments of `flows/prefect.yaml` with a Prefect server: `stillhouse flows deploy`.

    work pool -> its queue -> deployments -> unknown parameters are rejected
        -> keys come from Secret blocks (keys.py) -> runs whose process is lost are ended (recovery.py)

Each step is idempotent, so the command can be run again after any change.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from stillhouse.errors import PrefectUnavailable, RecipeError
from stillhouse.processes.environment import child_environment
from stillhouse_flows.definitions import (
    Changes,
    Definitions,
    complete_registration,
    load_flow,
    read_definitions,
    run_with_server,
)
from stillhouse_flows.keys import check_blocks, parse_secrets, refer_to_blocks
from stillhouse_flows.recovery import guard_runs

HOME_VARIABLE = "STILLHOUSE_HOME"


def working_folder() -> dict[str, str]:
    """Return the working folder of runs, on the worker's machine; a build step of `flows/prefect.yaml`.

    Raises:
        RecipeError: $STILLHOUSE_HOME is not an absolute path.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home and not Path(home).is_absolute():
        raise RecipeError(
            "a worker may start in any folder", setting=HOME_VARIABLE, value=home, fix="set it to an absolute path"
        )
    return {"directory": home or str(Path.cwd())}


def deploy(changes: Changes, secrets: Sequence[str] = ()) -> list[str]:
    """Create or update the deployments, and return their full names; `secrets` are `VARIABLE=BLOCK` (keys.py).

    Raises:
        RecipeError: a recipe, a schedule, a secret or $STILLHOUSE_HOME is wrong; nothing was changed.
        PrefectUnavailable: no server is configured, it does not answer, or it rejects a request.
    """
    definitions = read_definitions(changes)
    working_folder()
    blocks = parse_secrets(secrets)
    run_with_server(lambda: _deploy(definitions, blocks))
    return [f"{load_flow(entry).name}/{entry['name']}" for entry in definitions.deployments]


async def _deploy(definitions: Definitions, secrets: Mapping[str, str]) -> None:
    async with get_client() as client:
        await check_blocks(client, secrets)
        for name in definitions.pools:
            await _make_pool(client, name)
        for pool, queue in definitions.queues:
            await _make_queue(client, pool, queue)
        await asyncio.to_thread(_prefect_deploy, definitions)
        await complete_registration(client, definitions)
        await refer_to_blocks(client, definitions, secrets)
        await guard_runs(client)


async def _make_pool(client: PrefectClient, name: str) -> None:
    """Create a work pool of type process, unless a pool with this name exists."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        await client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))
    except ObjectAlreadyExists:
        return


async def _make_queue(client: PrefectClient, pool: str, queue: str) -> None:
    """Create a queue with one run at a time; keep a limit that is already set."""
    try:
        await client.create_work_queue(queue, work_pool_name=pool, concurrency_limit=1)
    except ObjectAlreadyExists:
        existing = await client.read_work_queue_by_name(queue, work_pool_name=pool)
        if existing.concurrency_limit is None:
            await client.update_work_queue(existing.id, concurrency_limit=1)


def _prefect_deploy(definitions: Definitions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(definitions.content, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise PrefectUnavailable(
            f"`prefect deploy` rejects flows/prefect.yaml:\n{done.stdout}{done.stderr}".rstrip(),
            fix="correct the file, or the options that change it",
        )
