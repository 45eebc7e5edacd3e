"""Label the parts of a job as tasks of a Ray cluster: `label.runner: {kind: ray}`.

Each part is a single-core task that labels an ordinary recipe in a Ray worker process. If the process or its machine is
lost, Ray restarts the task; the answers so far are in the part's journal. Every machine of the cluster needs Stillhouse
installed, the API keys in its environment, and `dataset.root` under the same path or URL.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError, StillhouseError, WorkerLost
from stillhouse.processes.environment import SAFE_PATH
from stillhouse.recipe.label import RunnerSettings
from stillhouse.recipe.load import load_recipe

_MAX_RETRIES = 3  # Ray's retries of a task whose process or machine is lost


class RayCluster:
    """A connection to a Ray cluster, kept until this process ends.

    Without a `working_dir`, Ray puts the caller's working folder first on the workers' import path, and then imports
    pyarrow: a file `pyarrow.py` there would end every worker. So the workers get an empty one.
    """

    def __init__(self, settings: RunnerSettings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise RecipeError(
                "Ray is not installed",
                setting="label.runner.kind",
                value="ray",
                fix="run `pip install 'stillhouse[ray]'`",
            ) from None
        if not ray.is_initialized():
            try:
                _check_reachable(settings.address)
                with tempfile.TemporaryDirectory(prefix="stillhouse-ray-") as empty:
                    ray.init(
                        address=settings.address,
                        runtime_env={"env_vars": SAFE_PATH, "working_dir": empty},
                        configure_logging=False,
                        log_to_driver=False,
                    )
            except (OSError, ValueError) as error:
                raise WorkerLost(
                    f"no Ray cluster answers there ({error})",
                    setting="label.runner.address",
                    value=settings.address,
                    fix="start one with `ray start --head`, or remove the address",
                ) from None
        self._ray: Any = ray
        self._task: Any = ray.remote(max_retries=_MAX_RETRIES, num_cpus=1)(_label)

    async def label(self, recipe: str, name: str) -> None:
        """Label a recipe as a Ray task, as `Runner.label` requires.

        Raises:
            StillhouseError: the error that stopped the labelling.
            WorkerLost: Ray lost the task.
            Exception: any other exception of the task, unchanged, with the worker's traceback as a note: a bug or a
                plug-in's error, which a retry would meet again.
        """
        task = self._task.options(name=name).remote(recipe, str(Path.cwd()))
        try:
            reported = await task
        except asyncio.CancelledError:
            self._ray.cancel(task)
            raise
        except self._ray.exceptions.RayTaskError as error:
            raise _task_exception(error, name) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"Ray lost the task {name}: {str(error).splitlines()[0]}") from None
        if reported is not None:
            raise reported


def _task_exception(error: Any, name: str) -> Exception:
    """Return the exception that a task raised; Ray's wrapper if the exception could not be serialized."""
    cause: Exception = error.cause if isinstance(error.cause, Exception) else error
    cause.add_note(f"raised by a Ray worker while labelling {name}:\n{error}")
    return cause


def _check_reachable(address: str | None) -> None:
    """Fail fast if nothing listens at the address: Ray waits for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _label(recipe: str, folder: str) -> StillhouseError | None:
    """Label a recipe in a Ray worker, and return the error that stopped it (Ray wraps raised exceptions)."""
    from stillhouse.labelling.engine import label

    os.chdir(folder)
    try:
        asyncio.run(label(load_recipe(recipe)))
    except StillhouseError as error:
        return error
    return None
