"""Parts of a labelling job as tasks of a Ray cluster: `label.runner: {kind: ray}`.

Each part is one task of one core, which labels an ordinary recipe in a process of Ray's. Ray starts it again where its
process or its machine is lost; what it had answered is in the part's journal. Every machine of the cluster needs Stillhouse
installed, the keys in its environment, and `dataset.root` under the same path or URL.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError, StillhouseError, WorkerLost
from stillhouse.processes.environment import SAFE_PATH
from stillhouse.recipe.label import RunnerSettings
from stillhouse.recipe.load import load_recipe

_TRIES = 3  # of Ray's own, at a task whose process or machine is lost


class RayCluster:
    """A connection to the cluster, kept until this process ends."""

    def __init__(self, settings: RunnerSettings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise RecipeError("label.runner.kind is 'ray': run `pip install 'stillhouse[ray]'`") from None
        if not ray.is_initialized():
            try:
                _reach(settings.address)
                ray.init(
                    address=settings.address,
                    runtime_env={"env_vars": SAFE_PATH},
                    configure_logging=False,
                    log_to_driver=False,
                )
            except (OSError, ValueError) as error:
                raise WorkerLost(
                    f"label.runner.address is {settings.address!r}, where no Ray cluster answers ({error}): start one with "
                    "`ray start --head`, or leave the address out"
                ) from None
        self._ray: Any = ray
        self._task: Any = ray.remote(max_retries=_TRIES, num_cpus=1)(_label)

    async def label(self, recipe: str, name: str) -> None:
        """As `Runner.label`.

        Raises:
            Exception: what the task raised, as it was raised there, with the worker's traceback as a note: a defect, or a
                plug-in's fault, which another try would meet again.
        """
        running = self._task.options(name=name).remote(recipe, str(Path.cwd()))
        try:
            refused = await running
        except asyncio.CancelledError:
            self._ray.cancel(running)
            raise
        except self._ray.exceptions.RayTaskError as error:
            raise _of_the_task(error, name) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"Ray lost {name}: {str(error).splitlines()[0]}") from None
        if refused is not None:
            raise refused


def _of_the_task(error: Any, name: str) -> Exception:
    """The exception that a task raised; Ray's own wrapping of it where it could not be sent."""
    cause: Exception = error.cause if isinstance(error.cause, Exception) else error
    cause.add_note(f"raised by a Ray worker that labelled {name}:\n{error}")
    return cause


def _reach(address: str | None) -> None:
    """Ray itself waits for minutes where nobody listens."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _label(recipe: str, folder: str) -> StillhouseError | None:
    """In a process of Ray's: label, and hand back what stopped it (what is raised here comes back wrapped)."""
    from stillhouse.labelling.engine import label

    os.chdir(folder)
    try:
        asyncio.run(label(load_recipe(recipe)))
    except StillhouseError as error:
        return error
    return None
