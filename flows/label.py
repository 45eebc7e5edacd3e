"""The labelling flow: teacher -> dataset, one task a shard.

A shard that fails is retried by Prefect; what is already answered is in the journal and is not asked for again.
"""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_table_artifact

from flows.common import FLOW, TASK, logged_progress
from pipeline.config import load_recipe
from pipeline.labelling.engine import LabelJob, LabelResult, open_job


@task(name="label shard", task_run_name="label {name}", retries=2, retry_delay_seconds=10, **TASK)
async def label_shard(job: LabelJob, number: int, name: str) -> None:
    """Label one shard of an open job."""
    await job.label_shard(number)


@flow(name="label", flow_run_name="label {recipe}", **FLOW)
async def label_flow(recipe: str, overrides: list[str] | None = None) -> LabelResult:
    """Label a recipe's prompts; `overrides` are as `--set` takes them."""
    log = get_run_logger()
    loaded = load_recipe(recipe, overrides or [])
    with open_job(loaded, logged_progress()) as job:
        try:
            await job.run(lambda number: label_shard(job, number, job.describe(number)))
        finally:
            await job.close()
        result = job.commit()
    manifest = result.dataset.manifest
    log.info("dataset %s: %d requests sent, %d answered before", manifest.label, result.sent, result.reused)
    await acreate_table_artifact(
        key="labels",
        description=f"Dataset {manifest.label} in {result.dataset.folder}",
        table=[{"rows": split, "count": count} for split, count in manifest.rows.items()]
        + [{"rows": f"rejected: {reason}", "count": count} for reason, count in manifest.rejected.items()],
    )
    return result
