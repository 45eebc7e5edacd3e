"""All stages as one flow: fine-tune the teacher if the recipe says so, label, distil, evaluate, report."""

from __future__ import annotations

from stillhouse_flows import search_working_folder_last

search_working_folder_last()

from typing import cast

from prefect import flow
from prefect.states import Completed

from stillhouse.errors import JobsPending
from stillhouse.evaluation.measures.held_out import require_held_out
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import check_run
from stillhouse.stages.finetune import make_gold
from stillhouse.stages.stages import RunResult, recipe_dataset, with_version
from stillhouse_flows.common import FLOW, Overrides, RecipePath, logged_progress, name_run
from stillhouse_flows.distill import distill_flow
from stillhouse_flows.evaluate import evaluate_flow
from stillhouse_flows.finetune import finetune_flow
from stillhouse_flows.label import leaves_batch_jobs, run_label_flow
from stillhouse_flows.work_pool import open_runner_in_flow


@flow(name="run", flow_run_name="run {recipe}", **FLOW)
def run_flow(recipe: RecipePath, overrides: Overrides = None) -> RunResult:
    """Run a recipe to its report.

    The flow is synchronous so that training runs in the main thread, where an interrupt reaches it at once.

    Args:
        recipe: A recipe file, such as flows/recipes/quickstart.yaml.
        overrides: Settings of the recipe to change, as for --set, such as label.sampling.temperature=0.5
    """
    loaded = load_recipe(recipe, overrides or [])
    name_run("run", loaded)
    check_run(loaded)
    open_runner_in_flow(loaded.label.runner)  # fails early if the workers are missing, before anything is trained
    finetuned = finetune_flow(recipe, overrides) if loaded.teacher.finetune else None
    if loaded.needs_gold and finetuned is None:
        make_gold(loaded, logged_progress())
    try:
        labelled = run_label_flow(recipe, overrides, detach=leaves_batch_jobs(None))
    except JobsPending as pending:  # a later run of the deployment collects them, and then distils
        return cast(RunResult, Completed(message=str(pending)))
    name_run("run", loaded, labelled.dataset.manifest)
    versioned = with_version(loaded, labelled.dataset)  # even if another run adds a newer version meanwhile
    require_held_out(versioned, recipe_dataset(versioned))
    pinned = [*(overrides or []), f"dataset.version={versioned.dataset.version}"]
    students = distill_flow(recipe, pinned)
    return RunResult(finetuned, labelled, students, evaluate_flow(recipe, pinned))
