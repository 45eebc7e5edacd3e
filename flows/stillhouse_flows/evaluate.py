"""The evaluation flow: teacher, baselines and student, or the students of a sweep, side by side -> report."""

from __future__ import annotations

from typing import cast

from prefect import flow, task
from prefect.states import Completed

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.evaluate import EvaluationResult
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_evaluate
from stillhouse.stages.stages import evaluate_stage, recipe_dataset
from stillhouse_flows.artifacts import publish_report, publish_sweep
from stillhouse_flows.common import FLOW, TASK, Overrides, RecipePath, logged_progress, name_run


@task(name="evaluate", task_run_name="evaluate", retries=1, retry_delay_seconds=10, **TASK)
def measure_models(recipe: Recipe, dataset: Dataset) -> EvaluationResult | SweepEvaluation:
    """Measure every model of the recipe, or return the stored report."""
    return evaluate_stage(recipe, dataset, logged_progress())


@flow(name="evaluate", flow_run_name="evaluate {recipe}", **FLOW)
def evaluate_flow(recipe: RecipePath, overrides: Overrides = None) -> EvaluationResult | SweepEvaluation:
    """Evaluate a recipe's student, or the students of its sweep; `overrides` are as for `--set`."""
    loaded = load_recipe(recipe, overrides or [])
    name_run("evaluate", loaded)
    check_evaluate(loaded)
    dataset = recipe_dataset(loaded)
    name_run("evaluate", loaded, dataset.manifest)
    result = measure_models(loaded, dataset)
    if isinstance(result, SweepEvaluation):
        publish_sweep(result, loaded)
    else:
        publish_report(result, loaded)
    return cast(EvaluationResult | SweepEvaluation, Completed(message=f"report: {result.files.html}", data=result))
