"""The fine-tuning flow: references -> the teacher of a recipe, in one task."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_finetune
from stillhouse.stages.stages import finetune_stage
from stillhouse.student.finished.folder import StudentResult
from stillhouse_flows.artifacts import publish_models
from stillhouse_flows.common import FLOW, TRAINING_TASK, Overrides, RecipePath, logged_progress, name_run


@task(name="fine-tune teacher", task_run_name="fine-tune teacher", **TRAINING_TASK)
def finetune_teacher(recipe: Recipe) -> StudentResult | None:
    """Fine-tune the teacher unless it is finished; a retry resumes from its last checkpoint."""
    return finetune_stage(recipe, logged_progress(), get_run_logger().info)


@flow(name="finetune", flow_run_name="finetune {recipe}", **FLOW)
def finetune_flow(recipe: RecipePath, overrides: Overrides = None) -> StudentResult | None:
    """Fine-tune a recipe's teacher; `overrides` are as for `--set`."""
    loaded = load_recipe(recipe, overrides or [])
    name_run("finetune", loaded)
    check_finetune(loaded)
    result = finetune_teacher(loaded)
    if result is not None:
        card = result.card
        get_run_logger().info("%s: %s", result.folder, "trained" if result.trained else "already trained")
        about = f"Fine-tuned teacher of {loaded.name}, from dataset {card.dataset}"
        publish_models("teacher", about, [result], loaded)
        if result.along:
            publish_models("students", f"Student of {loaded.name}, trained beside its teacher", [result.along], loaded)
    return result
