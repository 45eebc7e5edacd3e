"""Find who labels the parts of a job (`label.runner`): a Ray cluster, or nobody else. Work pools are Prefect's (flows/)."""

from __future__ import annotations

from pipeline.errors import RecipeError
from pipeline.label_settings import RunnerSettings
from pipeline.labelling.parts import Runner


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
    from pipeline.labelling.ray_cluster import RayCluster

    return RayCluster(settings)
