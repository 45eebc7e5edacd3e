"""Open the runner that labels a job's parts (`label.runner`): a Ray cluster or none. Work pools need Prefect (flows/)."""

from __future__ import annotations

from stillhouse.errors import RecipeError
from stillhouse.labelling.runner import Runner
from stillhouse.recipe.label import RunnerSettings


def open_runner(settings: RunnerSettings) -> Runner | None:
    """Return the runner to dispatch parts to; None if this process labels everything.

    Raises:
        RecipeError: the kind is a work pool and no flow is running, or the runner's library is not installed.
        WorkerLost: no Ray cluster answers at the address.
    """
    if settings.kind == "local":
        return None
    if settings.kind == "work-pool":
        raise RecipeError(
            "no Prefect server is configured that could assign parts to workers",
            setting="label.runner.kind",
            value="work-pool",
            fix="export PREFECT_API_URL=http://127.0.0.1:4200/api (docs/operations.md), or set the kind to local",
        )
    from stillhouse.labelling.runners.ray import RayCluster

    return RayCluster(settings)
