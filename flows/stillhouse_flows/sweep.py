"""The students of a sweep, each a task run of its own, several at a time where the recipe asks for it.

Each is a task run and no flow run: a flow run that is started from another one holds its thread until it ends, and training
in this process belongs into the main thread, where an interrupt reaches it at once. So one after another, students are
trained here as any student is; side by side, each task waits in a thread for a process that trains its student
(`stillhouse.stages.sweep`). Those processes end with this one, however it ends. A retry of a task goes on from its
student's last checkpoint, a retry of the flow finds the students that are there, and one student that fails keeps no other
from its end.
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
from stillhouse.stages.sweep import Children, PointTraining, train_apart, train_points
from stillhouse.student.finished.folder import StudentResult
from stillhouse_flows.common import TASK, logged_progress, retry_may_help

_OF_A_STUDENT: dict[str, Any] = {
    "name": "train student",
    "task_run_name": "train {label}",
    "retries": 1,
    "retry_delay_seconds": 10,
    **TASK,
}


@task(retry_condition_fn=retry_may_help, **_OF_A_STUDENT)
def train_here(training: PointTraining, label: str) -> StudentResult:
    """Train one student in this process."""
    here = partial(distill_stage, tell=get_run_logger().info)
    (result,) = train_points([training], 1, here, logged_progress())
    return result


@task(**_OF_A_STUDENT)
def train_in_a_process(training: PointTraining, label: str, children: Children) -> StudentResult:
    """Train one student in a process of its own."""
    return train_apart(training, children, get_run_logger().info, logged_progress())


def train_sweep(trainings: Sequence[PointTraining], at_a_time: int) -> list[StudentResult]:
    """Train the students of a sweep that are not there yet; called in a flow.

    Raises:
        StillhouseError: the first student that failed, in the order of `trainings`; the others were trained all the same.
    """
    if at_a_time == 1:
        states = [train_here(one, one.point.label, return_state=True) for one in trainings]
        return [state.result() for state in states]
    children = Children(at_a_time)

    def may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        return not children.stopped and retry_may_help(task, run, state)

    apart = train_in_a_process.with_options(retry_condition_fn=may_help)
    threads: ThreadPoolTaskRunner[StudentResult] = ThreadPoolTaskRunner(max_workers=at_a_time)
    with threads as runner:
        try:
            futures: list[PrefectFuture[StudentResult]] = [
                runner.submit(apart, {"training": one, "label": one.point.label, "children": children})
                for one in trainings
            ]
            wait(futures)
        except BaseException:
            children.stop()
            raise
    return [future.result() for future in futures]
