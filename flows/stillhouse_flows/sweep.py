"""The students of a sweep, one task run each, several in parallel if the recipe sets `at_a_time`.

Each is a task run, not a flow run: a flow run that another one starts blocks its thread until it ends, and training in this
process must run in the main thread, where an interrupt reaches it at once. One after another, students are trained in this
process; in parallel, each task waits in a thread for a process that trains its student (`stillhouse.stages.sweep`). Those
processes end with this one. A retry of a task resumes from its student's last checkpoint, a retry of the flow skips
finished students, and a student that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from stillhouse.stages.stages import distill_stage
from stillhouse.stages.sweep import ParallelChildren, PointTraining, train_in_child, train_points
from stillhouse.student.finished.folder import StudentResult
from stillhouse_flows.common import TRAINING_TASK, logged_progress, retry_unless_usage_error

_TASK_OPTIONS: dict[str, Any] = {"name": "train student", "task_run_name": "train {label}", **TRAINING_TASK}


@task(**_TASK_OPTIONS)
def train_in_this_process(training: PointTraining, label: str) -> StudentResult:
    """Train one student in this process."""
    train = partial(distill_stage, log=get_run_logger().info)
    (result,) = train_points([training], 1, train, logged_progress())
    return result


@task(**_TASK_OPTIONS)
def train_in_child_process(training: PointTraining, label: str, children: ParallelChildren) -> StudentResult:
    """Train one student in a separate process."""
    return train_in_child(training, children, get_run_logger().info, logged_progress())


def train_sweep(trainings: Sequence[PointTraining], at_a_time: int) -> list[StudentResult]:
    """Train the students of a sweep that are not finished; called in a flow.

    Raises:
        StillhouseError: the error of the first student that failed, in the order of `trainings`; the others were trained.
    """
    if at_a_time == 1:
        states = [train_in_this_process(one, one.point.label, return_state=True) for one in trainings]
        return [state.result() for state in states]
    children = ParallelChildren(at_a_time)

    def retry_if_running(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        return not children.stopped and retry_unless_usage_error(task, run, state)

    task_in_child = train_in_child_process.with_options(retry_condition_fn=retry_if_running)
    threads: ThreadPoolTaskRunner[StudentResult] = ThreadPoolTaskRunner(max_workers=at_a_time)
    with threads as runner:
        try:
            futures: list[PrefectFuture[StudentResult]] = [
                runner.submit(task_in_child, {"training": one, "label": one.point.label, "children": children})
                for one in trainings
            ]
            wait(futures)
        except BaseException:
            children.stop()
            raise
    return [future.result() for future in futures]
