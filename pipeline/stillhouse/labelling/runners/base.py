"""Find who labels the parts of a job (`label.runner`): a Ray cluster, or nobody else. Work pools are Prefect's (flows/)."""

from __future__ import annotations

from stillhouse.errors import RecipeError
from stillhouse.labelling.parts import Runner
from stillhouse.recipe.label import RunnerSettings


def open_runner(settings: RunnerSettings) -> Runner | None:
    """What hands parts out; None where this process asks everything itself.

    Raises:
        RecipeError: the kind is a work pool, and no flow runs; or its library is not installed.
        WorkerLost: there is no such cluster.
    """
    if settings.kind == "local":
        return None
    if settings.kind == "work-pool":
        raise RecipeError(
            "label.runner.kind is 'work-pool', and no Prefect server is configured that could give parts to workers: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api (docs/operations.md), or set the kind to local"
        )
    from stillhouse.labelling.runners.ray import RayCluster

    return RayCluster(settings)
