"""The distillation flow: dataset -> student (and its baselines), one task a student."""

from __future__ import annotations

from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun

from flows.common import FLOW, TASK, Overrides, RecipePath, logged_progress, name_run
from flows.watching import show_models
from pipeline.config import Recipe, load_recipe
from pipeline.dataset.store import Dataset
from pipeline.errors import UsageError
from pipeline.recipe_checks import check_distill
from pipeline.stages import StudentResult, dataset_of, distill_stage, students_to_train


def another_try_may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """What the recipe says wrongly stays wrong; whatever else it was, the store decides what is done."""
    return not isinstance(state.data, UsageError)


@task(
    name="train student",
    task_run_name="train {name}",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=another_try_may_help,
    **TASK,
)
def train_student(recipe: Recipe, place: int, dataset: Dataset, name: str) -> StudentResult:
    """Train one of the recipe's students; a retry goes on from its last checkpoint."""
    return distill_stage(recipe, students_to_train(recipe)[place], dataset, logged_progress(), get_run_logger().info)


@flow(name="distill", flow_run_name="distill {recipe}", **FLOW)
def distill_flow(recipe: RecipePath, overrides: Overrides = None) -> list[StudentResult]:
    """Train a recipe's students.

    Args:
        recipe: A recipe file, such as flows/recipes/quickstart.yaml.
        overrides: Settings of the recipe to change, as --set takes them, such as label.sampling.temperature=0.5
    """
    loaded = load_recipe(recipe, overrides or [])
    name_run("distill", loaded)
    check_distill(loaded)
    datasets = [dataset_of(loaded, student, logged_progress()) for student in students_to_train(loaded)]
    name_run("distill", loaded, datasets[-1].manifest)
    results = [
        train_student(loaded, place, dataset, f"{student.mode} student")
        for place, (student, dataset) in enumerate(zip(students_to_train(loaded), datasets, strict=True))
    ]
    for result in results:
        get_run_logger().info("%s: %s", result.folder, "trained" if result.trained else "was there already")
    show_models("students", f"Students of {loaded.name}, from dataset {datasets[-1].manifest.label}", results, loaded)
    return results
