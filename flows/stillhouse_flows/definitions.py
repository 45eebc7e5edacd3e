"""The deployments of `flows/prefect.yaml`, with the changes that a command requests.

    definitions = read_definitions(Changes(only="nightly", recipe="my.yaml"))

The file has Prefect's format, and `prefect deploy` reads it too; nothing in it is repeated in code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import get_current_settings

from stillhouse.errors import PrefectUnavailable, RecipeError
from stillhouse.inputs.urls import mask_secrets
from stillhouse.recipe.load import load_recipe, shipped_folder

FILE = shipped_folder() / "flows/prefect.yaml"
_NO_POOL = {"work_pool_name": None, "work_queue_name": None}


@dataclass(frozen=True)
class Changes:
    """Changes that a command makes to the file; None: unchanged."""

    only: str | None = None  # the name of one deployment
    recipe: str | None = None
    overrides: Sequence[str] = ()  # as for --set
    cron: str | None = None  # the five fields of cron
    timezone: str | None = None  # an IANA name


@dataclass(frozen=True)
class Definitions:
    """The file's content with the changes; `deployments` are its entries."""

    content: dict[str, Any]

    @property
    def deployments(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.content["deployments"]
        return entries

    @property
    def pools(self) -> list[str]:
        """Return the distinct names of the work pools."""
        return list(dict.fromkeys(entry["work_pool"]["name"] for entry in self.deployments))

    @property
    def sequential(self) -> list[dict[str, Any]]:
        """Deployments whose runs run one at a time: each writes a recipe's dataset, students or report."""
        return [entry for entry in self.deployments if "work_queue_name" in entry["work_pool"]]

    @property
    def parallel(self) -> list[dict[str, Any]]:
        """Deployments whose runs may run at the same time as others."""
        return [entry for entry in self.deployments if entry not in self.sequential]

    @property
    def queues(self) -> list[tuple[str, str]]:
        """Return the distinct work queues with one run at a time: name of the pool, name of the queue."""
        named = (entry["work_pool"] for entry in self.sequential)
        return list(dict.fromkeys((pool["name"], pool["work_queue_name"]) for pool in named))


def read_definitions(changes: Changes, file: Path = FILE) -> Definitions:
    """Return the changed deployments, after loading each one's recipe.

    Raises:
        RecipeError: the deployment does not exist, a schedule is given for several of them, or a recipe is wrong.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = [entry["name"] for entry in content["deployments"]]
    if changes.only is not None and changes.only not in names:
        raise RecipeError(
            f"{file} has no such deployment",
            setting="--only",
            value=changes.only,
            fix=f"choose from: {', '.join(names)}",
        )
    chosen = [entry for entry in content["deployments"] if changes.only in (None, entry["name"])]
    if changes.cron is not None and len(chosen) > 1:
        raise RecipeError(
            f"it would apply to {len(chosen)} deployments",
            setting="--cron",
            value=changes.cron,
            fix="choose one with --only",
        )
    for entry in chosen:
        _change(entry, changes)
        load_recipe(entry["parameters"]["recipe"], entry["parameters"]["overrides"])
    return Definitions({**content, "deployments": chosen})


def _change(entry: dict[str, Any], changes: Changes) -> None:
    parameters = {**entry["parameters"], "overrides": list(changes.overrides or entry["parameters"]["overrides"])}
    if changes.recipe is not None:
        parameters["recipe"] = changes.recipe
    schedules = [dict(schedule) for schedule in entry["schedules"]]
    if changes.cron is not None:
        kept = schedules[0] if schedules else {"timezone": "Etc/UTC", "slug": entry["name"]}
        schedules = [{**kept, "cron": changes.cron}]
    if changes.timezone is not None:
        schedules = [{**schedule, "timezone": changes.timezone} for schedule in schedules]
    for schedule in schedules:
        _check_schedule(entry["name"], schedule)
    entry.update(parameters=parameters, schedules=schedules)


def _check_schedule(name: str, schedule: dict[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    except ValueError as error:
        raise RecipeError(
            f"the schedule of {name}, cron {schedule['cron']!r} in time zone {schedule['timezone']!r}, is not valid",
            fix='give five fields such as "0 2 * * *", and an IANA time zone such as Europe/Lisbon',
        ) from error


def load_flow(entry: dict[str, Any]) -> Flow[..., Any]:
    """Return the flow of an entry of the file."""
    return load_flow_from_entrypoint(entry["entrypoint"])


def run_with_server(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function that needs a Prefect server.

    Raises:
        PrefectUnavailable: no server is configured (an embedded one would end with this command), or it does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        raise PrefectUnavailable(
            "it is not set, and a schedule needs a server",
            setting="PREFECT_API_URL",
            fix="start a server with `prefect server start`, and export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    try:
        asyncio.run(work())
    except httpx.TransportError as error:
        raise PrefectUnavailable(
            f"the server does not answer ({error})",
            setting="PREFECT_API_URL",
            value=mask_secrets(url),
            fix="start the server with `prefect server start`",
        ) from error


async def complete_registration(client: PrefectClient, definitions: Definitions, *, served: bool = False) -> None:
    """Complete the registration of deployments by Prefect.

    Make the API reject parameters that a flow does not have, which Prefect's schemas allow. Remove a deployment that is now
    served from its former work pool, or a worker would take its runs as well.
    """
    for entry in definitions.deployments:
        deployment = await client.read_deployment_by_name(f"{load_flow(entry).name}/{entry['name']}")
        schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
        answer = await client.request(
            "PATCH",
            "/deployments/{id}",
            path_params={"id": deployment.id},
            json={"parameter_openapi_schema": schema} | (_NO_POOL if served else {}),
        )
        answer.raise_for_status()
