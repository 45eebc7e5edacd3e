"""The rounds of on-policy distillation as flow runs: one a round, whose shards are tasks of a labelling run within it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import flow, get_run_logger, task

from stillhouse.dataset.store import Dataset
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.rounds.run import RoundResult, RoundSteps
from stillhouse.stages.rounds.stage import rounds_stage
from stillhouse.stages.stages import distill_stage
from stillhouse.storage.durable import write_atomically
from stillhouse.student.finished.folder import StudentResult
from stillhouse.student.finished.rounds import RoundFigures
from stillhouse_flows.artifacts import publish_rounds
from stillhouse_flows.common import FLOW, TRAINING_TASK, logged_progress
from stillhouse_flows.label import run_label_flow


@task(name="train student", task_run_name="train student of {name}", **TRAINING_TASK)
def train_student_of_round(recipe: Recipe, student: StudentSettings, dataset: Dataset, name: str) -> StudentResult:
    """Train the student of a round; a retry resumes from its last checkpoint."""
    return distill_stage(recipe, student, dataset, logged_progress(), get_run_logger().info)


def run_rounds_in_flow(recipe: Recipe, student: StudentSettings, labelled: Dataset, start: Path) -> StudentResult:
    """Run the rounds that are missing; called in a flow. The arguments are those of `rounds_stage`."""

    def report(rounds: tuple[RoundFigures, ...]) -> None:
        get_run_logger().info("%s", rounds[-1])
        publish_rounds(rounds, recipe)

    steps = RoundSteps(_score, _train, _in_own_run, report)
    return rounds_stage(recipe, student, labelled, start, steps, logged_progress())


def _score(recipe: Recipe, progress: Progress) -> Dataset:
    """Score rollouts in a labelling run, which reads its recipe from a file beside them."""
    file = Path(recipe.prompts.source).with_name("scoring.yaml")
    write_atomically(file, recipe.as_yaml().encode())
    return run_label_flow(str(file)).dataset


def _train(recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress) -> StudentResult:
    return train_student_of_round(recipe, student, dataset, recipe.name)


def _in_own_run(number: int, run: Callable[[], RoundResult]) -> RoundResult:
    @flow(name="round", flow_run_name=f"round {number}", **FLOW)
    def one_round() -> RoundResult:
        """Write, score and learn from one round's rollouts."""
        return run()

    return one_round()
