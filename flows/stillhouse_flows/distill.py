"""The distillation flow: dataset -> student (and its baselines), or the students of a sweep; one task per student."""

from __future__ import annotations

from stillhouse_flows import search_working_folder_last

search_working_folder_last()

from prefect import flow, get_run_logger, task

from stillhouse.dataset.store import Dataset
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_distill, student_of
from stillhouse.stages.rounds.stage import start_of_rounds
from stillhouse.stages.stages import dataset_of, distill_stage, points_to_train, students_to_train
from stillhouse.student.finished.folder import StudentResult
from stillhouse_flows.artifacts import publish_models
from stillhouse_flows.common import FLOW, TRAINING_TASK, Overrides, RecipePath, logged_progress, name_run
from stillhouse_flows.rounds import run_rounds_in_flow
from stillhouse_flows.sweep import train_sweep


@task(name="train student", task_run_name="train {name}", **TRAINING_TASK)
def train_student(recipe: Recipe, index: int, dataset: Dataset, name: str) -> StudentResult:
    """Train one of the recipe's students; a retry resumes from its last checkpoint."""
    return distill_stage(recipe, students_to_train(recipe)[index], dataset, logged_progress(), get_run_logger().info)


@flow(name="distill", flow_run_name="distill {recipe}", **FLOW)
def distill_flow(recipe: RecipePath, overrides: Overrides = None) -> list[StudentResult]:
    """Train a recipe's students.

    Args:
        recipe: A recipe file, such as flows/recipes/quickstart.yaml.
        overrides: Settings of the recipe to change, as for --set, such as label.sampling.temperature=0.5
    """
    loaded = load_recipe(recipe, overrides or [])
    name_run("distill", loaded)
    check_distill(loaded)
    if loaded.sweep is not None:
        trainings = points_to_train(loaded, progress=logged_progress())
        dataset = trainings[-1].dataset
        name_run("distill", loaded, dataset.manifest)
        results = train_sweep(trainings, loaded.sweep.at_a_time)
    else:
        dataset = dataset_of(loaded, student_of(loaded), logged_progress())
        name_run("distill", loaded, dataset.manifest)
        students = [(one, dataset_of(loaded, one, logged_progress())) for one in students_to_train(loaded)]
        results = [
            train_student(loaded, index, one, f"{student.mode} student")
            for index, (student, one) in enumerate(students)
        ]
        if loaded.on_policy is not None:
            start = start_of_rounds(loaded, results, dataset, logged_progress())
            results.append(run_rounds_in_flow(loaded, student_of(loaded), dataset, start))
    for result in results:
        get_run_logger().info("%s: %s", result.folder, "trained" if result.trained else "already trained")
    publish_models("students", f"Students of {loaded.name}, from dataset {dataset.manifest.label}", results, loaded)
    return results
