"""What is scheduled: `flows/prefect.yaml`, with the changes that a command asks for.

    definitions = read_definitions(Changes(only="nightly", recipe="my.yaml"))

The file is Prefect's own and is read by `prefect deploy` as well; nothing of it stands a second time in code.
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
from stillhouse.recipe.load import load_recipe, shipped_folder

FILE = shipped_folder() / "flows/prefect.yaml"
_NO_POOL = {"work_pool_name": None, "work_queue_name": None}


@dataclass(frozen=True)
class Changes:
    """What a command changes of the file; None leaves it as it stands there."""

    only: str | None = None  # the name of one deployment
    recipe: str | None = None
    overrides: Sequence[str] = ()  # as --set takes them
    cron: str | None = None  # five fields, as cron has them
    timezone: str | None = None  # an IANA name


@dataclass(frozen=True)
class Definitions:
    """The file's content, changed; `deployments` are its entries."""

    content: dict[str, Any]

    @property
    def deployments(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.content["deployments"]
        return entries

    @property
    def pools(self) -> list[str]:
        """The names of the work pools, each once."""
        return list(dict.fromkeys(entry["work_pool"]["name"] for entry in self.deployments))

    @property
    def in_turn(self) -> list[dict[str, Any]]:
        """Those whose runs wait for each other: each writes a recipe's dataset, students or report."""
        return [entry for entry in self.deployments if "work_queue_name" in entry["work_pool"]]

    @property
    def beside(self) -> list[dict[str, Any]]:
        """The others."""
        return [entry for entry in self.deployments if entry not in self.in_turn]

    @property
    def queues(self) -> list[tuple[str, str]]:
        """The work queues in which one run works at a time, each once: a pool's name, and the queue's."""
        named = (entry["work_pool"] for entry in self.in_turn)
        return list(dict.fromkeys((pool["name"], pool["work_queue_name"]) for pool in named))


def read_definitions(changes: Changes, file: Path = FILE) -> Definitions:
    """The deployments as they shall be, each with a recipe that can be loaded.

    Raises:
        RecipeError: no such deployment, a schedule changed of more than one, or a recipe that is wrong.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = [entry["name"] for entry in content["deployments"]]
    if changes.only is not None and changes.only not in names:
        raise RecipeError(f"--only is {changes.only!r}, and {file} has only: {', '.join(names)}")
    chosen = [entry for entry in content["deployments"] if changes.only in (None, entry["name"])]
    if changes.cron is not None and len(chosen) > 1:
        raise RecipeError(f"--cron is {changes.cron!r} for {len(chosen)} deployments: name one with --only")
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
            f"the schedule of {name}, cron {schedule['cron']!r} in time zone {schedule['timezone']!r}, is none: give five "
            'fields such as "0 2 * * *", and an IANA time zone such as Europe/Lisbon'
        ) from error


def flow_of(entry: dict[str, Any]) -> Flow[..., Any]:
    """The flow that an entry of the file runs."""
    return load_flow_from_entrypoint(entry["entrypoint"])


def at_server(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do what needs a Prefect server.

    Raises:
        PrefectUnavailable: none is configured (an embedded one would be gone with this command), or it does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        raise PrefectUnavailable(
            "PREFECT_API_URL is not set, so there is no server that could keep a schedule: start one with "
            "`prefect server start`, and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        asyncio.run(work())
    except httpx.TransportError as error:
        raise PrefectUnavailable(
            f"PREFECT_API_URL is {url}, where nobody answers ({error}): start the server with `prefect server start`"
        ) from error


async def settle(client: PrefectClient, definitions: Definitions, *, served: bool = False) -> None:
    """What Prefect's own registering leaves open, of deployments that are registered.

    The API shall refuse parameters that a flow does not have: Prefect's schemas allow any beside the known ones. And one
    that is served and stood in a work pool before must leave it, or a worker would take its runs as well.
    """
    for entry in definitions.deployments:
        deployment = await client.read_deployment_by_name(f"{flow_of(entry).name}/{entry['name']}")
        schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
        answer = await client.request(
            "PATCH",
            "/deployments/{id}",
            path_params={"id": deployment.id},
            json={"parameter_openapi_schema": schema} | (_NO_POOL if served else {}),
        )
        answer.raise_for_status()
